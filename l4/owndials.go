package l4

import (
	"net/netip"

	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
)

// errOwnDial means that we have made a redirected connection ourselves.
var errOwnDial = &outcome.Refusal{Stage: outcome.StageRoute, Reason: outcome.Loop, Text: "the redirect catches our own connections, and this is one: keep ours out of it, by mark of the upstream (nft: meta mark … return) or by a user of our own (meta skuid)"}

// isOwnDial reports whether we have made the client's connection ourselves. Such a
// connection may be accepted before its dial has recorded it. It is then found later,
// when the session has made the next connection.
func (s *session) isOwnDial() bool {
	if s.route.cfg.Request != RequestOriginal || s.downstream.request == nil {
		return false
	}
	r := s.downstream.request
	return s.server.deps.Dials.Has(netconn.Unmapped(s.downstream.conn.RemoteAddr()), netip.AddrPortFrom(r.Addr, r.Port))
}

// loops returns the error of a session whose client is the ambassador itself.
func (s *session) loops() *outcome.Error {
	return &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.Loop, Err: errOwnDial}
}
