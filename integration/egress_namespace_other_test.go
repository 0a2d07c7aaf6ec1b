//go:build !linux

package integration

import "errors"

// newNamespace is Linux's.
func newNamespace() error { return errors.ErrUnsupported }

// replaceFile is Linux's.
func replaceFile(string, string) error { return errors.ErrUnsupported }
