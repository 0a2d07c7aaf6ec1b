//go:build !linux

package main

import (
	"errors"
	"time"
)

// cpuTime is Linux's alone.
func (*running) cpuTime() (time.Duration, error) {
	return 0, errors.New("the processor time of another process can be read on Linux only; run the bench there")
}
