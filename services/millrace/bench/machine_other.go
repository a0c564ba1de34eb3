//go:build !linux

package bench

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

// The figures need what Linux tells about processes and volumes.
var errSystem = fmt.Errorf("the bench runs on Linux, not on %s: %w", runtime.GOOS, errors.ErrUnsupported)

func hardware() (cpu string, memory int64, kernel string, err error) { return "", 0, "", errSystem }
func fileSystem(string) (string, error)                              { return "", errSystem }
func freeSpace(string) (int64, error)                                { return 0, errSystem }
func syncVolume(string) error                                        { return errSystem }
func resident(int) (now, peak float64, err error)                    { return 0, 0, errSystem }
func forgetPeak(int) error                                           { return errSystem }
func cpuTime(int) (time.Duration, error)                             { return 0, errSystem }
