package l4

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"

	"ambassador/l4/destination"
	"ambassador/l4/htpasswd"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/peer"
	"ambassador/l4/preface"
	"ambassador/l4/relay"
	"ambassador/l4/request"
	"ambassador/policy"
)

// downstream is the client's side of a session: the accepted connection, and what the
// client has sent on it before its payload. The session's Run owns it until the relay
// takes the connection. A listener without a greeting sets only conn.
type downstream struct {
	conn      net.Conn            // the accepted connection
	header    preface.ProxyHeader // the header from the proxy before us
	tls       *tls.Conn           // nil: plaintext
	transport *relay.Transport    // the transport below tls
	principal string              // the client's proved name; empty: none
	early     *earlyConn          // nil: none of the client's payload was read
	cancel    bool                // early is a CancelRequest that was sent without TLS
	request   *request.Request    // the client's request; nil: it has sent none
	hello     preface.ClientHello // set if the listener peeks at the ClientHello
	hints     *preface.Hints      // nil: the client has given none
	from      *peer.Who           // the client's process; nil: it was not looked up
	users     *htpasswd.Users     // the users that checked the client's password; nil: none
}

// stream returns the connection that carries the client's payload: the TLS connection
// if the listener has TLS.
func (d *downstream) stream() net.Conn {
	switch {
	case d.early != nil:
		return d.early
	case d.tls != nil:
		return d.tls
	}
	return d.conn
}

// unread puts back bytes that were read, so that the next reader gets them first.
func (d *downstream) unread(b []byte) {
	if d.early != nil { // what was put back before, and not read since
		b = append(b, d.early.early...)
		d.early = nil
	}
	if len(b) > 0 {
		d.early = &earlyConn{d.stream(), b}
	}
}

// leg converts the connection for the relay, which then owns it.
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

// end closes a connection that no relay has taken. If the ambassador ends it, end
// resets it, so that the client never mistakes it for a complete answer. If the client
// ended it, end closes it normally.
func (d *downstream) end(why outcome.Reason) {
	if why == outcome.Closed || why == outcome.Probe {
		d.stream().Close()
		return
	}
	netconn.Reset(d.conn)
}

// addr is the client's address, from the PROXY header if there is one. It is not valid
// on unix sockets.
func (d *downstream) addr() netip.Addr {
	if d.header.Source.IsValid() {
		return d.header.Source.Addr()
	}
	return netconn.ClientIP(d.conn)
}

// source is the source that the client counts for, by the PROXY header if there is one.
func (d *downstream) source() policy.Source {
	if d.header.Source.IsValid() {
		return policy.SourceOf(d.header.Source.Addr())
	}
	return peer.Source(d.conn)
}

// asks is what the client asks for its own connection.
func (d *downstream) asks() preface.Hints {
	if d.hints == nil {
		return preface.Hints{}
	}
	return *d.hints
}

// requested is the request of a client that waits for an answer; nil if the client does
// not wait for one.
func (d *downstream) requested() *request.Request {
	if d.request == nil || d.request.Answer == nil {
		return nil
	}
	return d.request
}

// destination is the client's destination; nil if the client has not named one.
func (d *downstream) destination() *destination.Destination {
	if d.request == nil {
		return nil
	}
	return &destination.Destination{Host: d.request.Host, Absolute: d.request.Absolute, Addr: d.request.Addr, Port: d.request.Port}
}

// query is what rules can match: the session's client and its destination.
func (d *downstream) query(to *destination.Destination) policy.Query {
	q := policy.Query{Host: to.Host, Addr: to.Addr, Port: to.Port, Client: d.addr(), Principal: d.principal, SNI: d.hello.ServerName}
	if d.from != nil {
		q.UID, q.HasUID, q.LostUID = d.from.UID, d.from.HasUID, d.from.Lost
	}
	if d.request != nil {
		q.User = d.request.User
	}
	return q
}

// origin describes the client for a PROXY header.
func (d *downstream) origin() *preface.Origin {
	o := &preface.Origin{Source: netconn.Unmapped(d.conn.RemoteAddr()), Destination: netconn.Unmapped(d.conn.LocalAddr()), Fields: d.header.Fields()}
	switch {
	case d.header.Source.IsValid():
		o.Source, o.Destination = d.header.Source, d.header.Destination
	case d.request != nil && d.request.Answer == nil: // our own address is only the target of the redirect
		o.Destination = netip.AddrPortFrom(d.request.Addr, d.request.Port)
	}
	if d.tls != nil {
		state := d.tls.ConnectionState()
		o.TLS, o.Principal = &state, d.principal
	}
	return o
}

// earlyConn is a connection from which some bytes were already read.
type earlyConn struct {
	net.Conn
	early []byte
}

// CloseWrite closes our side for writing, if the connection supports that.
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
