//go:build !linux

package dir

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"
)

// Elsewhere than on Linux the driver is for development: files are synced one by one and folders are polled.

func remoteName(*os.File) string { return "unknown" }

func syncsWhole(*os.File) bool { return false }

func syncWhole(*os.File) error { return errors.ErrUnsupported }

func startWriteback(*os.File, int64, int64) {}

func setDirect(*os.File, bool) error { return errors.ErrUnsupported }

func shareBlocks(_, _ *os.File) error { return errors.ErrUnsupported }

func notify(context.Context, *Source, time.Duration, func(), *slog.Logger, func(Change)) error {
	return errNoWatches
}
