package l4

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"

	"ambassador/l4/htpasswd"
	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/l4/relay"
	"ambassador/policy"
)

// downstream is the client's side of a session: the accepted connection, and what the
// client has said on it before its own bytes. The session's Run owns it until the relay
// takes the connection. A listener without a greeting fills in conn alone.
type downstream struct {
	conn      net.Conn            // the accepted connection
	header    preface.ProxyHeader // of the proxy before us
	tls       *tls.Conn           // nil: plaintext
	transport *relay.Transport    // below tls
	principal string              // what the client has proved; empty without
	early     *earlyConn          // nil: none of the client's own bytes were read
	cancel    bool                // early is a CancelRequest that came without TLS
	request   *request            // where the client wants to go; nil: it has not said
	hello     preface.ClientHello // of a listener that reads it
	hints     preface.Hints
	users     *htpasswd.Users // that have checked the client's password; nil: none
}

// stream is where the client's own bytes are: within TLS if the listener has it.
func (d *downstream) stream() net.Conn {
	switch {
	case d.early != nil:
		return d.early
	case d.tls != nil:
		return d.tls
	}
	return d.conn
}

// unread puts bytes that were read back before what the client sends next.
func (d *downstream) unread(b []byte) {
	if len(b) > 0 {
		d.early = &earlyConn{d.stream(), b}
	}
}

// leg is the connection for the relay, which owns it from then on.
func (d *downstream) leg() relay.Leg {
	var early []byte
	if d.early != nil {
		early = d.early.early
	}
	if d.tls != nil {
		return relay.TLS(d.tls, d.transport, early)
	}
	return relay.Plain(d.conn, early)
}

// end closes a connection that no relay has taken. What the ambassador decides is a
// reset, so that it never looks like a complete answer; an ending that the client itself
// began is a plain close.
func (d *downstream) end(why outcome.Reason) {
	if why == outcome.Closed || why == outcome.Probe {
		d.stream().Close()
		return
	}
	reset(d.conn)
}

// addr is the client's address, by the PROXY header if there is one; not valid on unix
// sockets.
func (d *downstream) addr() netip.Addr {
	if d.header.Source.IsValid() {
		return d.header.Source.Addr()
	}
	return clientIP(d.conn)
}

// source is what counts as one client, by the PROXY header if there is one.
func (d *downstream) source() policy.Source {
	if d.header.Source.IsValid() {
		return policy.SourceOf(d.header.Source.Addr())
	}
	return sourceOf(d.conn)
}

// requested is the request of a client that waits for an answer; nil: it does not.
func (d *downstream) requested() *request {
	if d.request == nil || d.request.answer == nil {
		return nil
	}
	return d.request
}

// destination is where the client wants to go; without a port if it has not said.
func (d *downstream) destination() *destination {
	if d.request == nil {
		return &destination{}
	}
	return &destination{host: d.request.Host, addr: d.request.Addr, port: d.request.Port}
}

// query is what rules may ask about a session to a destination.
func (d *downstream) query(to *destination) policy.Query {
	q := policy.Query{Host: to.host, Addr: to.addr, Port: to.port, Client: d.addr(), Principal: d.principal, SNI: d.hello.ServerName}
	if _, unix := d.conn.(*net.UnixConn); unix {
		q.UID, q.HasUID = peerUID(d.conn)
	}
	if d.request != nil {
		q.User = d.request.User
	}
	return q
}

// origin is the client for a PROXY header.
func (d *downstream) origin() *preface.Origin {
	o := &preface.Origin{Source: unmapped(d.conn.RemoteAddr()), Destination: unmapped(d.conn.LocalAddr())}
	switch {
	case d.header.Source.IsValid():
		o.Source, o.Destination = d.header.Source, d.header.Destination
	case d.request != nil && d.request.answer == nil: // our own address is only where it was redirected to
		o.Destination = netip.AddrPortFrom(d.request.Addr, d.request.Port)
	}
	if d.tls != nil {
		state := d.tls.ConnectionState()
		o.TLS, o.Principal = &state, d.principal
	}
	return o
}

// earlyConn is a connection of which some bytes were read already.
type earlyConn struct {
	net.Conn
	early []byte
}

// CloseWrite ends our side, if the connection can.
func (c *earlyConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (c *earlyConn) Read(b []byte) (int, error) {
	if len(c.early) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.early)
	c.early = c.early[n:]
	return n, nil
}
