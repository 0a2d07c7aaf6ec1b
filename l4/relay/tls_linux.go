package relay

import (
	"errors"
	"io"

	"ambassador/l4/tlsrecord"
)

// tlsSide is the TLS of a side.
type tlsSide struct {
	conn      records
	transport *Transport
	shadow    *tlsrecord.Shadow // of conn; nil: none
	feed      feed
	owed      int  // the application's bytes in held that are not counted yet
	notified  bool // we have written close_notify
	unread    bool // conn may hold bytes that it read before Start
}

// records is a *tls.Conn, or a *tlsrecord.Conn.
type records interface {
	io.ReadWriter
	CloseWrite() error
}

// tail copies the beginning of a record that conn does not have yet.
func (t *tlsSide) tail(into []byte) int {
	if t.shadow == nil {
		return 0
	}
	return copy(into, t.shadow.Tail())
}

// whole returns the bytes that conn may read now: with a Shadow whole records only, so
// that conn holds none, except at the end.
func (t *tlsSide) whole(in []byte) []byte {
	if t.shadow == nil {
		return in
	}
	n := len(in)
	if t.feed.end == nil {
		n = tlsrecord.Whole(in)
	}
	t.shadow.Keep(in[n:])
	return in[:n]
}

// follow says that conn has read these records, and n bytes of plaintext.
func (t *tlsSide) follow(in []byte, n int, unread bool) {
	if t.shadow == nil {
		return
	}
	if unread {
		n = -1 // some of them were read before
	}
	t.shadow.Received(in, n)
}

// errNotFollowed is the error of export.
var errNotFollowed = errors.New("relay: the state of the side's TLS is not known")

// export returns the state of TLS, with which restoreTLS continues it in another process.
// It contains secrets: the caller overwrites it after its use.
func (t *tlsSide) export() ([]byte, error) {
	var s *tlsrecord.State
	err := errNotFollowed
	switch own, is := t.conn.(*tlsrecord.Conn); {
	case t.unread: // crypto/tls may hold bytes
	case is:
		s, err = own.Export()
	case t.shadow != nil:
		s, err = t.shadow.Export(t.notified)
	}
	if err != nil {
		return nil, err
	}
	defer s.Clear()
	return s.AppendBinary(nil)
}

// carriable reports whether export succeeds.
func (t *tlsSide) carriable() bool {
	state, err := t.export()
	clear(state)
	return err == nil
}

// restoreTLS continues TLS from what export has returned.
func restoreTLS(state []byte) (*tlsSide, error) {
	var s tlsrecord.State
	if err := s.UnmarshalBinary(state); err != nil {
		return nil, err
	}
	defer s.Clear()
	t := &tlsSide{transport: NewTransport(nil), notified: s.Notified()}
	t.conn = tlsrecord.NewConn(t.transport, &s)
	t.transport.handOver()
	t.transport.fed = &t.feed
	t.transport.shut.Store(t.notified)
	return t, nil
}
