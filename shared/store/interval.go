package store

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// PublicIntervals are the debounce intervals everybody may use (contract §13.2).
var PublicIntervals = []string{"5m", "10m", "1h", "1d"}

// ParseInterval reads a debounce interval: a Go duration, or a number of days as "1d". It must be at least a second,
// the resolution of the alarm clock.
func ParseInterval(s string) (time.Duration, error) {
	var d time.Duration
	var err error
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16) // a hundred years and more, far from overflow
		d = time.Duration(n) * 24 * time.Hour
	} else {
		d, err = time.ParseDuration(s)
	}
	if err != nil || d < time.Second {
		return 0, fmt.Errorf("%q is not an interval of at least 1s such as 30s, 5m, 1h or 1d", s)
	}
	return d, nil
}
