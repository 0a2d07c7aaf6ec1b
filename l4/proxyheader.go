package l4

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"ambassador/l4/ending"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/peer"
	"ambassador/l4/preface"
	"ambassador/policy"
)

// fromProxy reports whether the peer is one of the proxies in ProxyFrom.
func (s *session) fromProxy() bool {
	peer := netconn.ClientIP(s.downstream.conn)
	return slices.ContainsFunc(s.route.cfg.ProxyFrom, func(p netip.Prefix) bool { return p.Contains(peer) })
}

// proxied reads the PROXY header, which names the client.
func (s *session) proxied(ctx context.Context) error {
	fail := func(reason outcome.Reason, err error) error {
		return &outcome.Error{Stage: outcome.StageGreet, Reason: reason, Err: err}
	}
	if !s.fromProxy() {
		return fail(outcome.Denied, fmt.Errorf("only the proxies in proxy_protocol.from of the listener may connect, and %s is none of them", s.snapshot().Client))
	}
	h, early, err := s.readProxyHeader(ctx)
	if err != nil {
		return fail(ending.PrefaceReason(err), err)
	}
	s.downstream.header = h
	if h.Source.IsValid() {
		s.note(func(r *outcome.Record) { r.Client = h.Source.String() })
		return s.reassign(policy.SourceOf(h.Source.Addr()))
	}
	if early != nil { // the peer is the client
		s.downstream.unread(early)
		return s.reassign(peer.Source(s.downstream.conn))
	}
	return nil
}

// readProxyHeader reads the header. Early is what was read of a client that sent none,
// where the header is optional, else nil. Such a client may also send nothing, or
// nothing more.
func (s *session) readProxyHeader(ctx context.Context) (h preface.ProxyHeader, early []byte, err error) {
	unbound := netconn.Bound(ctx, s.downstream.conn)
	from := s.metered(s.downstream.conn)
	if !s.route.cfg.ProxyOptional {
		h, err = preface.ReadProxyHeader(from)
	} else if h, early, err = preface.ReadOptionalProxyHeader(from); early != nil && (netconn.IsTimeout(err) || netconn.IsEOF(err)) {
		err = nil
	}
	if err == nil {
		unbound()
	}
	return h, early, err
}

// proxyHeader is the PROXY header that names the session's client to its upstream; empty
// if the upstream expects none.
func (s *session) proxyHeader() (string, error) {
	if s.upstream.Config().ProxyProtocol == 0 {
		return "", nil
	}
	header, err := s.downstream.origin().Format(byte(s.upstream.Config().ProxyProtocol))
	return string(header), err
}
