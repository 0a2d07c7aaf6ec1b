package relay

import "net"

// Listener accepts connections for an engine.
type Listener interface {
	// Serve calls f with every connection until accepting fails, and returns how
	// many there were and the error: net.ErrClosed after Close. F owns the
	// connection. It may be called by several goroutines at once, which other
	// connections need: it must not wait.
	Serve(f func(net.Conn)) (n int, err error)
	// Close stops accepting, for good.
	Close() error
	// Addr is the bound address.
	Addr() net.Addr
}

// plainListener is any listener of Go's.
type plainListener struct{ net.Listener }

// Serve accepts until that fails.
func (l *plainListener) Serve(f func(net.Conn)) (n int, err error) {
	for ; ; n++ {
		conn, err := l.Accept()
		if err != nil {
			return n, err
		}
		f(conn)
	}
}

// Leaver is told before a call waits, so that the caller's goroutine can be given back
// to an event loop first.
type Leaver interface{ Leave() }
