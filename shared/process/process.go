// Package process is what every main of Millrace shares: its logger, its signals, the actors it runs and waits for, the
// order in which it stops, its version, and the port on which it is watched (Ops).
//
// A main reads:
//
//	ctx, stop := process.Signals(context.Background())
//	defer stop()
//	stack := process.NewStack(logger, 30*time.Second)
//	stack.Push("broker", func(context.Context) error { b.Shutdown(); return nil })
//	group := process.NewGroup(ctx)
//	group.Go("scanner", scanner.Run)
//	group.Go("ops", func(ctx context.Context) error { return ops.Serve(ctx, addr) })
//	err := group.Wait()
//	return errors.Join(err, stack.Stop())
package process

import (
	"context"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
)

// version is set by the linker: -X millrace/shared/process.version=v1.2.3.
var version string

// Version names this build: what the release was linked with, else the commit it was built from ("-dirty" when there
// were changes), else "devel".
var Version = sync.OnceValue(func() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	return buildVersion(info)
})

func buildVersion(info *debug.BuildInfo) string {
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if rev := settings["vcs.revision"]; rev != "" {
		rev = rev[:min(len(rev), 12)]
		if settings["vcs.modified"] == "true" {
			rev += "-dirty"
		}
		return rev
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	return "devel"
}

// Signals returns a context that ends with the first SIGINT or SIGTERM, which context.Cause then names. From there on
// signals do what they do by default: the second one ends a process whose shutdown takes too long. stop releases.
func Signals(ctx context.Context) (_ context.Context, stop context.CancelFunc) {
	ctx, stop = signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}
