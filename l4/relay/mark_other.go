//go:build !linux

package relay

import "errors"

// SetMark fails: only Linux has marks. The error is a *MarkError.
func SetMark(_ uintptr, mark int) error { return &MarkError{mark, errors.ErrUnsupported} }

// MayMark returns an error: this process may not mark its sockets.
func MayMark(mark int) error { return SetMark(0, mark) }
