//go:build !linux

package relay

import "net"

// wasReset is not implemented here: if a failed write got the error of a reset first,
// the reset may be passed on as a FIN.
func wasReset(net.Conn) bool { return false }

// pollable returns c: every connection is in Go's poller.
func pollable(c net.Conn) net.Conn { return c }
