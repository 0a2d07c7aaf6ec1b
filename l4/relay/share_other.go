//go:build !unix

package relay

import "errors"

// SetShared fails: the system has no sockets that share a port.
func SetShared(_ uintptr, _ bool) error { return errors.ErrUnsupported }
