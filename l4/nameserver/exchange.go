package nameserver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// exchange is one lookup at one server. It sits between Go's resolver, which makes and
// reads the messages, and the server. It ends the query for one address family when the
// other family's address was there for a time, and it exchanges a name that Go's resolver
// refuses for one that it does not.
type exchange struct {
	server string
	delay  time.Duration
	end    context.CancelFunc // ends over
	over   context.Context    // ends when no other family is awaited any more
	cut    atomic.Bool        // a query was ended by over

	aliasHost   string // what Go's resolver is asked for instead of the name
	alias, real []byte // both names on the wire, of the same length, without the root; nil: there is no alias

	mu    sync.Mutex
	first dnsmessage.Type // guarded by mu; the family that has an address; 0: none
	timer *time.Timer     // guarded by mu; ends over after delay; nil: not started
}

func newExchange(ctx context.Context, server string, delay time.Duration) *exchange {
	x := &exchange{server: server, delay: delay}
	x.over, x.end = context.WithCancel(ctx)
	return x
}

// resolver returns Go's resolver for the server. It is made for each lookup, because a
// resolver merges its lookups of the same name.
func (x *exchange) resolver() *net.Resolver {
	if x.server == "" {
		return net.DefaultResolver
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		d.SetMultipathTCP(false)
		raw, err := d.DialContext(ctx, network, x.server)
		if err != nil {
			return nil, err
		}
		if udp, ok := raw.(*net.UDPConn); ok {
			return &datagrams{conn{Conn: raw, exchange: x}, udp}, nil
		}
		return &stream{conn: conn{Conn: raw, exchange: x}}, nil
	}}
}

// found records that a family has an address.
func (x *exchange) found(family dnsmessage.Type) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.first == 0 {
		x.first = family
		x.timer = time.AfterFunc(x.delay, x.end)
	}
}

// close ends the lookup.
func (x *exchange) close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.timer != nil {
		x.timer.Stop()
	}
	x.end()
}

// isOver reports whether a query of that type is not awaited any more.
func (x *exchange) isOver(kind dnsmessage.Type) bool {
	if !isFamily(kind) || x.over.Err() == nil {
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.first != 0 && x.first != kind
}

func isFamily(t dnsmessage.Type) bool {
	return t == dnsmessage.TypeA || t == dnsmessage.TypeAAAA
}

// conn is a connection to the server, for one query.
type conn struct {
	net.Conn
	exchange *exchange
	id       uint16          // of the query
	kind     dnsmessage.Type // of the query; 0 before it was sent
	forget   func() bool     // nil before the query was sent
}

// Close closes the connection.
func (c *conn) Close() error {
	if c.forget != nil {
		c.forget()
	}
	return c.Conn.Close()
}

// sent returns the query to send, in place of the resolver's.
func (c *conn) sent(query []byte) ([]byte, error) {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil {
		return query, nil
	}
	q, err := p.Question()
	if err != nil {
		return query, nil
	}
	c.id, c.kind = head.ID, q.Type
	if c.exchange.isOver(c.kind) { // the resolver repeats a query that was ended
		c.exchange.cut.Store(true)
		return nil, os.ErrDeadlineExceeded
	}
	c.forget = context.AfterFunc(c.exchange.over, func() {
		if c.exchange.isOver(c.kind) {
			c.Conn.SetReadDeadline(time.Unix(1, 0))
		}
	})
	return replaceName(bytes.Clone(query), c.exchange.alias, c.exchange.real), nil
}

// heard reads a message of the server, and makes it one that the resolver accepts.
func (c *conn) heard(message []byte) {
	replaceName(message, c.exchange.real, c.exchange.alias)
	if isFamily(c.kind) && hasAddress(message, c.id) {
		c.exchange.found(c.kind)
	}
}

// ended notes that a query was ended.
func (c *conn) ended(err error) {
	if err != nil && c.exchange.isOver(c.kind) {
		c.exchange.cut.Store(true)
	}
}

// datagrams is a conn over UDP. Go's resolver takes a net.PacketConn for one.
type datagrams struct {
	conn
	packets
}

type packets interface {
	ReadFrom([]byte) (int, net.Addr, error)
	WriteTo([]byte, net.Addr) (int, error)
}

// Read reads a message.
func (d *datagrams) Read(b []byte) (int, error) {
	n, err := d.Conn.Read(b)
	if err == nil {
		d.heard(b[:n])
	}
	d.ended(err)
	return n, err
}

// Write writes a message.
func (d *datagrams) Write(b []byte) (int, error) {
	query, err := d.sent(b)
	if err != nil {
		return 0, err
	}
	return d.Conn.Write(query)
}

// stream is a conn over TCP, where a message follows its length in two bytes.
type stream struct {
	conn
	unread []byte // of a message that was read
}

// Read reads part of a message. It waits for a whole one.
func (s *stream) Read(b []byte) (int, error) {
	if len(s.unread) == 0 {
		message, err := readMessage(s.Conn)
		s.ended(err)
		if err != nil {
			return 0, err
		}
		s.heard(message[2:])
		s.unread = message
	}
	n := copy(b, s.unread)
	s.unread = s.unread[n:]
	return n, nil
}

// readMessage reads a message, and returns it behind its length.
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	message := make([]byte, 2+int(binary.BigEndian.Uint16(size[:])))
	copy(message, size[:])
	_, err := io.ReadFull(r, message[2:])
	return message, err
}

// Write writes a message, which Go's resolver passes as a whole.
func (s *stream) Write(b []byte) (int, error) {
	if len(b) < 2 {
		return s.Conn.Write(b)
	}
	query, err := s.sent(b[2:])
	if err != nil {
		return 0, err
	}
	return s.Conn.Write(append(b[:2:2], query...))
}

// hasAddress reports whether the message is a complete answer to the query with an
// address.
func hasAddress(message []byte, query uint16) bool {
	var p dnsmessage.Parser
	head, err := p.Start(message)
	if err != nil || head.ID != query || !head.Response || head.Truncated || head.RCode != dnsmessage.RCodeSuccess || p.SkipAllQuestions() != nil {
		return false
	}
	for {
		h, err := p.AnswerHeader()
		if err != nil {
			return false
		}
		if isFamily(h.Type) {
			return true
		}
		if p.SkipAnswer() != nil {
			return false
		}
	}
}

// setAlias sets a name for Go's resolver if it refuses the host, and reports whether it
// does: no label may end in a dash there, although there are such names, and the C
// library looks them up (golang.org/issue/17659).
func (x *exchange) setAlias(host string) bool {
	name := strings.TrimSuffix(host, ".")
	labels := strings.Split(name, ".")
	for i, label := range labels {
		x.real = append(append(x.real, byte(len(label))), label...)
		if before, ok := strings.CutSuffix(label, "-"); ok {
			labels[i] = before + "_"
		}
		x.alias = append(append(x.alias, byte(len(label))), labels[i]...)
	}
	x.aliasHost = strings.Join(labels, ".") + host[len(name):]
	return x.aliasHost != host
}

// truth returns an error of Go's resolver with the host and the server that were asked
// for. The resolver names the alias, and the first server of resolv.conf.
func (x *exchange) truth(err error, host string) error {
	d, ok := errors.AsType[*net.DNSError](err)
	if !ok || x.server == "" {
		return err
	}
	about := *d
	about.Name = host
	if about.Server != "" {
		about.Server = x.server
	}
	return &about
}

// headSize is the size of a message's head. The name of the question follows.
const headSize = 12

// replaceName replaces the beginning of the question's name, in place, by another of the
// same length.
func replaceName(message, from, to []byte) []byte {
	end := headSize + len(from)
	if len(from) > 0 && len(message) > end && bytes.EqualFold(message[headSize:end], from) {
		copy(message[headSize:], to)
	}
	return message
}
