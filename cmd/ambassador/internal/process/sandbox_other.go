//go:build !linux

package process

import (
	"errors"
	"runtime"
)

func hardenProcess(bool) error { return nil }

func landlockABI() (int, error) { return 0, errors.New(runtime.GOOS + " has no Landlock") }

func restrictProcess(limits) error { return errors.ErrUnsupported }
