//go:build !linux

package relay

import "errors"

// SetMark marks what a socket sends, which only Linux can. The error is a
// *MarkError.
func SetMark(_ uintptr, mark int) error { return &MarkError{mark, errors.ErrUnsupported} }

// MayMark says whether this process may mark its sockets: it may not.
func MayMark(mark int) error { return SetMark(0, mark) }
