//go:build !linux

package handover

import (
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/l4/carry"
)

// Available returns ErrUnavailable.
func Available() error { return ErrUnavailable }

// Exec returns ErrUnavailable.
func Exec(string, *carry.Handover, []int, func() error) error { return ErrUnavailable }

func execFile(int, []int, []string) error { return ErrUnavailable }

func conceal() {}

func readState(int) ([]byte, error) { return nil, ErrUnavailable }

func release(*Received) {}

// Store returns ErrUnavailable.
func Store(string, *carry.Handover, []int) error { return ErrUnavailable }

func receiveStored(program.World) *Received { return nil }
