//go:build !linux

package millrace_test

import "errors"

func mountSmall(string) error { return errors.New("small disks are for Linux") }

func unmount(string) {}
