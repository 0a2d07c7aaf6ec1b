package l4

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"ambassador/l4/relay"
	"ambassador/l4/starttls"
	"ambassador/policy"
)

// listener is a bound socket and its accept loop. A reload that keeps the address keeps
// the listener and replaces its route.
type listener struct {
	// Static after construction.
	server *Server
	relay.Listener
	addr   string      // as logged: "127.0.0.1:5432", "unix:/path"
	key    string      // the part of the configuration that must not change if the socket is to be kept
	socket *UnixSocket // nil: not a unix socket that we made

	limiter limiter
	route   atomic.Pointer[route]
	removed atomic.Bool   // a reload has removed the listener
	closing chan struct{} // closed before the socket is
}

// route is what a listener does with a session: its configuration, as one immutable
// value.
type route struct {
	cfg      ListenerConfig
	listener *listener
	choices  map[string]choice  // the upstreams that its sessions may use, by name
	traffic  *traffic           // counts sessions whose upstream is not chosen yet
	resolver *resolver          // of names in rules
	rules    *policy.Rules      // nil: all sessions use cfg.Upstream
	limiter  *limiter           // the listener's
	asked    *starttls.Protocol // the protocol in which clients ask for TLS; nil: none
	parked   parkedSessions
	// established has only what a relayed session still needs, so that long sessions do
	// not keep the rules of old configurations in memory.
	established *route
}

// choice is an upstream that sessions of a listener may use.
type choice struct {
	upstream *Upstream
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
	return orDefault(r.cfg.Timeouts.Handshake, DefaultHandshakeTimeout)
}

// listenKey is the part of the configuration that a socket depends on. A port chosen by
// the system belongs to the listener's name. The mode and owner of a unix socket are
// left out: they are changed in place.
func listenKey(cfg ListenerConfig) string {
	if strings.HasSuffix(cfg.Address, ":0") {
		return cfg.Address + " " + cfg.Name
	}
	return cfg.Address
}

// listen binds the socket that cfg asks for. The error names the address and, if it is
// known, the fix.
func (s *Server) listen(ctx context.Context, cfg ListenerConfig) (*listener, error) {
	l := &listener{server: s, key: listenKey(cfg), closing: make(chan struct{})}
	var err error
	switch {
	case strings.HasPrefix(cfg.Address, "unix:"):
		err = l.listenUnix(ctx, strings.TrimPrefix(cfg.Address, "unix:"), cfg.Socket)
	case strings.HasPrefix(cfg.Address, "systemd:"):
		err = l.inherit(strings.TrimPrefix(cfg.Address, "systemd:"))
	default:
		err = l.listenTCP(ctx, cfg.Address)
	}
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w", cfg.Name, err)
	}
	if err := checkPlaintext(l.Addr(), cfg); err != nil {
		l.close()
		return nil, fmt.Errorf("listener %s: %w", cfg.Name, err)
	}
	return l, nil
}

func (l *listener) listenTCP(ctx context.Context, address string) error {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive}
	lc.SetMultipathTCP(false) // by default, Go listens with MPTCP
	ln, err := lc.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("listen %s: the address is in use; stop what holds it (ss -ltnp tells) or choose another port", address)
	}
	if err != nil {
		return err
	}
	return l.take(ln)
}

// take makes ln the listener's socket.
func (l *listener) take(ln net.Listener) (err error) {
	l.addr = ln.Addr().String()
	l.Listener, err = l.server.engine.Listen(ln, &keepAlive)
	return err
}

// inherit takes the one socket that systemd passed under name. It uses a dup, so that a
// reload can close the socket and another can take it again.
func (l *listener) inherit(name string) error {
	files := l.server.opts.Inherited[name]
	if len(files) != 1 {
		return fmt.Errorf("systemd:%s: %d sockets of that name were passed, one is needed; set FileDescriptorName=%s in the .socket unit", name, len(files), name)
	}
	ln, err := net.FileListener(files[0])
	if err != nil {
		return fmt.Errorf("systemd:%s: %w", name, err)
	}
	if err := l.take(ln); err != nil {
		return fmt.Errorf("systemd:%s: %w", name, err)
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the file belongs to systemd
		l.addr = "unix:" + l.addr
	}
	return nil
}

func (l *listener) listenUnix(ctx context.Context, path string, cfg SocketConfig) error {
	socket, err := ListenUnix(ctx, path, cfg)
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
func (l *listener) reguard(cfg ListenerConfig) (undo func(), err error) {
	if l.socket == nil {
		return func() {}, nil
	}
	if undo, err = l.socket.reguard(cfg.Socket); err != nil {
		return nil, fmt.Errorf("listener %s: %w", cfg.Name, err)
	}
	return undo, nil
}

// checkPlaintext refuses a plaintext socket that other hosts can reach.
func checkPlaintext(addr net.Addr, cfg ListenerConfig) error {
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
