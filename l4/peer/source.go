package peer

import (
	"net"

	"ambassador/l4/netconn"
	"ambassador/policy"
)

// Source is the source of the peer of a connection: the user on a unix socket, else the
// address.
func Source(c net.Conn) policy.Source {
	if uid, ok := UID(c); ok {
		return policy.SourceOfUser(uid)
	}
	return policy.SourceOf(netconn.ClientIP(c))
}
