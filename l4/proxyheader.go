package l4

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/policy"
)

// ProxyVersion is a version of the PROXY protocol. If zero, no header is sent.
type ProxyVersion byte

// The versions: 1 is a line of text, 2 a binary header that can describe TLS.
const (
	ProxyV1 ProxyVersion = 1
	ProxyV2 ProxyVersion = 2
)

// fromProxy reports whether the peer is one of the proxies in ProxyFrom.
func (s *session) fromProxy() bool {
	peer := clientIP(s.downstream.conn)
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
	unbound := boundIO(ctx, s.downstream.conn)
	h, err := preface.ReadProxyHeader(s.downstream.conn)
	if err != nil {
		return fail(prefaceReason(err), err)
	}
	unbound()
	s.downstream.header = h
	if !h.Source.IsValid() {
		return nil
	}
	s.note(func(r *outcome.Record) { r.Client = h.Source.String() })
	return s.become(policy.SourceOf(h.Source.Addr()))
}

// proxyHeader is the PROXY header that names the session's client to its upstream; empty
// if the upstream expects none.
func (s *session) proxyHeader() (string, error) {
	if s.upstream.cfg.ProxyProtocol == 0 {
		return "", nil
	}
	header, err := s.downstream.origin().Format(byte(s.upstream.cfg.ProxyProtocol))
	return string(header), err
}

// announce sends the PROXY header before any other byte.
func (c *upstreamConn) announce(ctx context.Context) error {
	start := time.Now()
	header := c.header
	if header == "" {
		header = c.upstream.localHeader
	}
	defer boundIO(ctx, c.raw)()
	if _, err := io.WriteString(c.raw, header); err != nil {
		return err
	}
	c.timed(PhaseProxy, start)
	return nil
}
