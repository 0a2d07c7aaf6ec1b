package l4

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"ambassador/l4/bind"
	"ambassador/l4/limits"
	"ambassador/l4/nameserver"
	"ambassador/l4/netconn"
	"ambassador/l4/relay"
	"ambassador/l4/starttls"
	"ambassador/l4/unixsocket"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// listener is a bound socket and its accept loop: one of those that a listener of the
// configuration has. A reload that keeps the address keeps the socket and replaces its
// route.
type listener struct {
	// Static after construction.
	server *Server
	relay.Listener
	addr   string             // as logged: "127.0.0.1:5432", "unix:/path"
	key    string             // of its place
	socket *unixsocket.Socket // nil: not a unix socket that we made

	limiter *limits.Limiter // guarded by Server.mu; shared by the sockets of a listener
	route   atomic.Pointer[route]
	removed atomic.Bool   // a reload has removed the listener
	closing chan struct{} // closed before the socket is
}

// route is what a listener does with a session: its configuration, as one immutable
// value.
type route struct {
	cfg      ListenerConfig
	listener *listener
	choices  map[string]choice    // the upstreams that its sessions may use, by name
	traffic  *traffic             // counts sessions whose upstream is not chosen yet
	resolver *nameserver.Resolver // of names in rules
	rules    *policy.Rules        // nil: all sessions use cfg.Upstream
	limiter  *limits.Limiter      // the listener's
	asked    *starttls.Protocol   // the protocol in which clients ask for TLS; nil: none
	// parked are the sessions whose client has to speak and has not finished. Before the first
	// byte they have no goroutine, no stack and no entry in Go's poller, only a socket, which
	// an engine's loop watches, and a place here.
	parked limits.Deadlines[*session]
	// established has only what a relayed session still needs, so that long sessions do
	// not keep the rules of old configurations in memory.
	established *route
}

// choice is an upstream that sessions of a listener may use.
type choice struct {
	upstream *upstream.Upstream
	traffic  *traffic
}

// askedIn is the protocol in which a listener's clients ask for TLS; nil: none.
func askedIn(cfg ListenerConfig) (*starttls.Protocol, error) {
	if cfg.StartTLS == "" {
		return nil, nil
	}
	p, ok := starttls.Lookup(cfg.StartTLS)
	switch {
	case !ok || p.Accept == nil:
		return nil, fmt.Errorf("listener %s: starttls %s: unknown for clients; this version has %v", cfg.Name, cfg.StartTLS, starttls.AcceptNames())
	case cfg.TLS == nil:
		return nil, fmt.Errorf("listener %s: starttls %s: there is no TLS to start", cfg.Name, cfg.StartTLS)
	}
	return p, nil
}

func (r *route) handshake() time.Duration {
	return cmp.Or(r.cfg.Timeouts.Handshake, DefaultHandshakeTimeout)
}

// listen binds a place of the listener cfg. The sockets in instead are closed soon. The
// error names the address and, if it is known, the fix.
func (s *Server) listen(ctx context.Context, cfg *ListenerConfig, p bind.Place, instead []bind.Socket) (*listener, error) {
	l := &listener{server: s, key: p.Key, closing: make(chan struct{})}
	var err error
	c := s.carried.left().Listener(p.Key)
	switch {
	case c != nil && l.adopt(c, cfg):
	case p.Unix != "":
		err = l.listenUnix(ctx, p.Unix, cfg.Socket)
	case p.File != nil:
		err = l.inherit(p)
	default:
		err = l.listenTCP(ctx, p, instead)
	}
	if err != nil {
		return nil, err
	}
	if err := checkPlaintext(l.Addr(), cfg); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *listener) listenTCP(ctx context.Context, p bind.Place, instead []bind.Socket) error {
	ln, err := p.Listen(ctx, instead)
	if err != nil {
		return err
	}
	return l.take(ln)
}

// take makes ln the listener's socket.
func (l *listener) take(ln net.Listener) (err error) {
	l.addr = ln.Addr().String()
	l.Listener, err = l.server.engine.Listen(ln, &netconn.KeepAlive)
	return err
}

// inherit takes a socket that systemd passed. It uses a dup, so that a reload can close
// the socket and another can take it again.
func (l *listener) inherit(p bind.Place) error {
	ln, err := net.FileListener(p.File)
	if err != nil {
		return fmt.Errorf("%s: %w", p.Address, err)
	}
	if err := l.take(ln); err != nil {
		return fmt.Errorf("%s: %w", p.Address, err)
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the file belongs to systemd
		l.addr = "unix:" + l.addr
	}
	return nil
}

func (l *listener) listenUnix(ctx context.Context, path string, cfg unixsocket.Config) error {
	socket, err := unixsocket.Listen(ctx, path, cfg)
	if err != nil {
		return err
	}
	l.socket = socket
	if err := l.take(socket.UnixListener); err != nil {
		return err
	}
	l.addr = "unix:" + path
	return nil
}

// reguard gives a kept unix socket the mode and owner of cfg. undo reverts that.
func (l *listener) reguard(cfg *ListenerConfig) (undo func(), err error) {
	if l.socket == nil {
		return func() {}, nil
	}
	return l.socket.Reguard(cfg.Socket)
}

// isLost reports whether no client can reach the socket, because its file is gone or is
// another's.
func (l *listener) isLost() bool { return l.socket != nil && l.socket.IsLost() }

// checkPlaintext refuses a plaintext socket that other hosts can reach.
func checkPlaintext(addr net.Addr, cfg *ListenerConfig) error {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || cfg.TLS != nil || cfg.UnsafePlaintextListen || tcp.IP.IsLoopback() {
		return nil
	}
	return fmt.Errorf("listen %s: plaintext on an address that others can reach; listen on 127.0.0.1 or a unix socket, or set unsafe_plaintext_listen: true", addr)
}

// close stops accepting. Sessions continue.
func (l *listener) close() {
	close(l.closing)
	if l.socket != nil {
		l.socket.Close()
		return
	}
	l.Listener.Close()
}

// acceptLoop makes sessions of connections until close. The server waits for it.
func (l *listener) acceptLoop() {
	wait := time.Duration(0)
	for {
		n, err := l.Serve(func(conn net.Conn) { l.server.begin(l, conn) })
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if n > 0 {
			wait = 0
		}
		if wait == 0 {
			l.server.log.Warn("accepting pauses", "listener", l.route.Load().cfg.Name, "cause", err.Error())
		}
		if !l.backOff(&wait) {
			return
		}
	}
}

// backOff waits after a failed accept, which means that descriptors or memory ran out:
// 5 ms at first, at most a second. It returns false if the listener was closed.
func (l *listener) backOff(wait *time.Duration) bool {
	if f := l.server.opts.Observer.AcceptPaused; f != nil {
		f(l.route.Load().cfg.Name)
	}
	*wait = min(max(2**wait, 5*time.Millisecond), time.Second)
	t := time.NewTimer(*wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.closing:
		return false
	}
}
