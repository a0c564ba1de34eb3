package broker

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestCheckVersion(t *testing.T) {
	for _, c := range []struct {
		version string
		tooOld  bool
		bad     bool
	}{
		{version: "2.14.0"}, {version: "2.14"}, {version: "2.15.2"}, {version: "2.100.0"}, {version: "3.0.0"},
		{version: "v2.14.3"}, {version: "2.14.0-RC.1"}, {version: "2.15.0-dev"},
		{version: "2.13.9", tooOld: true}, {version: "2.9.25", tooOld: true}, {version: "1.99.0", tooOld: true},
		{version: "", bad: true}, {version: "dev", bad: true}, {version: "2", bad: true}, {version: "2.x.1", bad: true},
		{version: "-2.14.0", bad: true}, {version: "2.99999999999.0", bad: true},
	} {
		err := checkVersion(c.version)
		if (err != nil) != (c.tooOld || c.bad) || errors.Is(err, ErrTooOld) != c.tooOld {
			t.Errorf("%q: %v", c.version, err)
			continue
		}
		if c.tooOld && (!strings.Contains(err.Error(), c.version) || !strings.Contains(err.Error(), MinVersion)) {
			t.Errorf("%q: error %q does not name found and needed", c.version, err)
		}
	}
}

// What the running server was told, not what we meant to tell it: it has paths on which options get lost.
func TestServerSyncs(t *testing.T) {
	for _, unsafe := range []bool{false, true} {
		b, err := Start(t.Context(), Config{Dir: t.TempDir(), Unsafe: unsafe, MaxStore: 1 << 30, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		cfg := b.srv.JetStreamConfig()
		b.Shutdown()
		if cfg.SyncAlways == unsafe || cfg.MaxStore != 1<<30 || cfg.MaxMemory != memoryLimit || cfg.Domain != "" {
			t.Errorf("unsafe=%v: server runs with %+v", unsafe, cfg)
		}
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"nats://h:1":                 "nats://h:1",
		"nats://tok@h:1":             "nats://[redacted]@h:1",
		"nats://u:p@ss@h:1,tls://h2": "nats://[redacted]@h:1,tls://h2",
		"u:p@h:1":                    "[redacted]@h:1",
	} {
		if got := redact(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestStoreLimit(t *testing.T) {
	dir := t.TempDir()
	free, err := freeBytes(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := storeLimit(dir)
	if err != nil {
		t.Fatal(err)
	}
	// Others write to the volume, too: a tenth is enough to tell 80 % from everything.
	if lo, hi := free/10*7, free/10*9; got < lo || got > hi {
		t.Errorf("limit %d of %d free, want about 80 %%", got, free)
	}
}
