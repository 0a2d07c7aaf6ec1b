//go:build !linux

package relay

import "net"

const hasSplice = false

// hungUp is only asked about a splice.
func hungUp(net.Conn) bool { return true }

// wasReset is not known here: a reset that a failed write was told of first may
// be passed on as a FIN.
func wasReset(net.Conn) bool { return false }

// pollable is c: every connection is in Go's poller.
func pollable(c net.Conn) net.Conn { return c }
