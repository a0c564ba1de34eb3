//go:build !unix

package worker

import "os/exec"

// ownGroup leaves it at killing the command itself: there are no process groups here.
func ownGroup(*exec.Cmd) {}

func killGroup(*exec.Cmd) {}
