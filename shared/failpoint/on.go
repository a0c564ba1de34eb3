//go:build failpoints

package failpoint

import (
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

var (
	place, how, _ = strings.Cut(os.Getenv("MILLRACE_FAILPOINT"), "=")
	done          atomic.Bool
)

// Err is what a place fails with.
var Err = errors.New("a failpoint")

// Here is a place that can fail.
func Here(name string) error {
	if name != place || !done.CompareAndSwap(false, true) {
		return nil
	}
	if hit := os.Getenv("MILLRACE_FAILPOINT_HIT"); hit != "" {
		if err := os.WriteFile(hit, []byte(name), 0o600); err != nil {
			panic(err)
		}
	}
	switch how {
	case "error":
		return Err
	case "kill":
		self, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = self.Kill()
		}
		if err != nil {
			panic(err)
		}
		select {}
	}
	d, err := time.ParseDuration(how)
	if err != nil {
		panic(err)
	}
	time.Sleep(d)
	return nil
}
