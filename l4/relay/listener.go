package relay

import "net"

// Listener accepts connections for an engine.
type Listener interface {
	// Serve calls f with every connection until accepting fails. It returns the
	// number of connections and the error: net.ErrClosed after Close. F owns the
	// connection. Several goroutines may call it at once. It must not block, because
	// other connections need these goroutines.
	Serve(f func(net.Conn)) (n int, err error)
	// Close stops accepting, for good.
	Close() error
	// Addr is the bound address.
	Addr() net.Addr
}

// plainListener adapts any net.Listener.
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
