package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ambassador/cmd/ambassador/internal/adminsocket"
	"ambassador/l4"
	"ambassador/l4/bind"
	"ambassador/l4/netconn"
	"ambassador/l4/unixsocket"
)

// Part is this package among the parts of the process that survive a panic.
const Part = "admin"

// Endpoints are the HTTP sockets of a process: the admin API, and the metrics
// where they have one of their own. Its methods are called one at a time.
type Endpoints struct {
	// Static after construction.
	Env         func(string) (string, bool) // says where the default socket is
	Log         *slog.Logger
	Deps        Deps
	Connections int // at a time, of each
	// Panics is told of each panic of a request.
	Panics func(part string, value any, stack []byte)

	// Carried are the sockets that the program before this one has left. Prepare takes
	// those over that are wanted; their descriptors stay open until Commit.
	Carried []CarriedSocket

	running []*endpoint
	served  atomic.Pointer[[]*endpoint] // running, for other goroutines
	serving sync.WaitGroup              // the servers, and those on their way out
}

// endpoint is one socket. A reload that keeps the address keeps the socket and
// swaps the handler.
type endpoint struct {
	// Static after construction.
	name     string // as printed
	at       string // as configured
	addr     string // as bound
	listener net.Listener
	gate     *Gate
	pace     *turns
	server   *http.Server
	panics   func(part string, value any, stack []byte)

	handler atomic.Pointer[http.Handler]
}

// ServeHTTP answers by the configuration in use, not too many requests a second. A
// panic ends the request alone.
func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if v := recover(); v != nil && v != http.ErrAbortHandler {
			e.panics(Part, v, debug.Stack())
			panic(http.ErrAbortHandler) // net/http closes the connection, and says no more
		} else if v != nil {
			panic(v)
		}
	}()
	if e.pace.pass(r.Context()) != nil {
		panic(http.ErrAbortHandler) // the client has gone, or its connection made room for another
	}
	(*e.handler.Load()).ServeHTTP(w, r)
}

// EndpointSet is what a configuration wants. What is new in it is bound, and not
// served before Commit.
type EndpointSet struct {
	all      []*endpoint
	fresh    []*endpoint
	handlers []http.Handler // of all
	undo     []func()       // what Discard reverts
}

func (s *EndpointSet) add(e *endpoint, h http.Handler) {
	s.all, s.handlers = append(s.all, e), append(s.handlers, h)
}

// Discard closes what was bound, and reverts what was changed.
func (s *EndpointSet) Discard() {
	for _, undo := range s.undo {
		undo()
	}
	for _, e := range s.fresh {
		e.listener.Close()
	}
}

// Sockets is where a process serves HTTP.
type Sockets struct {
	// Admin is where the admin API is; nil: it is off.
	Admin *Socket
	// Metrics is the address of /livez, /readyz and /metrics alone; empty: none.
	Metrics string
}

// Socket is where the admin API is, and how it is guarded there. Whether that is
// on TCP follows from the address.
type Socket struct {
	At    adminsocket.Address
	Guard Guard
}

// Prepare binds what is wanted and not bound yet. On an error nothing is left of
// that. A default admin socket that cannot be made is a warning.
func (m *Endpoints) Prepare(ctx context.Context, want Sockets) (*EndpointSet, error) {
	set := &EndpointSet{}
	err := m.prepareAdmin(ctx, set, want.Admin)
	if err == nil {
		err = m.prepareMetrics(ctx, set, want.Metrics)
	}
	if err != nil {
		set.Discard()
		return nil, err
	}
	return set, nil
}

func (m *Endpoints) prepareAdmin(ctx context.Context, set *EndpointSet, want *Socket) error {
	if want == nil {
		return nil
	}
	at := want.At
	e := m.find("admin", at.At)
	if e == nil {
		ln, addr, err := m.carried("admin", at.At, at.Socket)
		if ln == nil {
			ln, addr, err = adminsocket.Listen(ctx, m.Env, at, m.given("admin")...)
		}
		if err != nil && at.At == "" {
			m.Log.Warn("no admin socket: status, why and the other commands cannot ask this process", "cause", err.Error(), "hint", `set admin.listen, or --admin ADDR; --admin "" for none`)
			return nil
		}
		if err != nil {
			return err
		}
		e = m.bind(set, "admin", at.At, addr, ln, requestTimeout)
	} else if err := set.reguard(e, at.Socket); err != nil {
		return fmt.Errorf("admin: %w", err)
	} else if tcp, ok := e.listener.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() && !at.Unsafe {
		return fmt.Errorf("admin: listen %s: others can reach the admin API there; listen on 127.0.0.1 or a unix socket, or set admin.unsafe_admin_listen: true", e.addr)
	}
	guard := want.Guard
	guard.TCP = e.listener.Addr().Network() != "unix"
	set.add(e, NewHandler(m.Deps, guard))
	return nil
}

func (m *Endpoints) prepareMetrics(ctx context.Context, set *EndpointSet, at string) error {
	if at == "" {
		return nil
	}
	e := m.find("metrics", at)
	if e == nil {
		ln, _, err := m.carried("metrics", at, unixsocket.Config{})
		if ln == nil {
			ln, err = bind.ListenTCP(ctx, at, m.given("metrics")...)
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("metrics: listen %s: the address is in use; stop what holds it (ss -ltnp tells) or choose another port in metrics.listen", at)
		}
		if err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
		e = m.bind(set, "metrics", at, ln.Addr().String(), ln, metricsTimeout)
	}
	set.add(e, newProbeHandler(m.Deps))
	return nil
}

// find returns the running endpoint of that name and address; nil if there is none, or
// if no client can reach its socket any more.
func (m *Endpoints) find(name, at string) *endpoint {
	i := slices.IndexFunc(m.running, func(e *endpoint) bool { return e.name == name && e.at == at && !e.isLost() })
	if i < 0 {
		return nil
	}
	return m.running[i]
}

// carried returns the socket that the program before this one has left for an address;
// nil if there is none that can be used. The error is always nil.
func (m *Endpoints) carried(name, at string, cfg unixsocket.Config) (net.Listener, string, error) {
	i := slices.IndexFunc(m.Carried, func(c CarriedSocket) bool { return c.Name == name && c.At == at })
	if i < 0 {
		return nil, "", nil
	}
	c := m.Carried[i]
	ln, err := netconn.ListenerOf(c.FD)
	if u, ok := ln.(*net.UnixListener); ok && err == nil {
		var socket *unixsocket.Socket
		if socket, err = unixsocket.Adopt(u, strings.TrimPrefix(c.Addr, "unix:"), c.File, cfg); err == nil {
			ln = socket
		}
	}
	if errors.Is(err, fs.ErrNotExist) { // in a restart systemd removes the runtime directory
		return nil, "", nil
	}
	if err != nil {
		m.Log.Warn("a socket cannot be carried over; it is bound anew", "address", c.Addr, "cause", err.Error())
		return nil, "", nil
	}
	return ln, c.Addr, nil
}

// Carry describes the sockets that are served for the program that takes the place of
// this one.
func (m *Endpoints) Carry() (out []CarriedSocket, err error) {
	for _, e := range m.running {
		c := CarriedSocket{Name: e.name, At: e.at, Addr: e.addr}
		if socket, ok := e.listener.(*unixsocket.Socket); ok {
			c.File = socket.File()
		}
		raw, err := e.listener.(syscall.Conn).SyscallConn()
		if err != nil {
			return nil, err
		}
		if err := raw.Control(func(fd uintptr) { c.FD = int(fd) }); err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// given returns the TCP socket of that name, which is closed if find has not found it.
func (m *Endpoints) given(name string) (out []bind.Socket) {
	for _, e := range m.running {
		if tcp, ok := e.listener.(*net.TCPListener); ok && e.name == name {
			if raw, err := tcp.SyscallConn(); err == nil {
				out = append(out, raw)
			}
		}
	}
	return out
}

// isLost reports whether the file of the endpoint's unix socket is gone.
func (e *endpoint) isLost() bool {
	socket, ok := e.listener.(*unixsocket.Socket)
	return ok && socket.IsLost()
}

// reguard gives the unix socket of e another mode and owner, until Discard.
func (s *EndpointSet) reguard(e *endpoint, cfg unixsocket.Config) error {
	socket, ok := e.listener.(*unixsocket.Socket)
	if !ok {
		return nil
	}
	undo, err := socket.Reguard(cfg)
	if err == nil {
		s.undo = append(s.undo, undo)
	}
	return err
}

// Lost describes the sockets that no client can reach any more. It may be called at any
// time.
func (m *Endpoints) Lost() (out []string) {
	all := m.served.Load()
	if all == nil {
		return nil
	}
	for _, e := range *all {
		if e.isLost() {
			out = append(out, fmt.Sprintf("%s: the file of %s was removed or replaced, so that no client can connect; reload to make it anew", e.name, e.addr))
		}
	}
	return out
}

func (m *Endpoints) bind(set *EndpointSet, name, at, addr string, ln net.Listener, timeout time.Duration) *endpoint {
	e := &endpoint{name: name, at: at, addr: addr, listener: ln, panics: m.Panics, pace: newTurns(requestGap),
		gate: &Gate{What: name, Max: m.Connections, Log: m.Log}}
	e.server = newHTTPServer(e, e.gate, timeout, m.Log)
	set.fresh = append(set.fresh, e)
	return e
}

// Commit serves the set, and retires what is not in it.
func (m *Endpoints) Commit(set *EndpointSet) {
	for i, e := range set.all {
		e.handler.Store(&set.handlers[i])
	}
	for _, e := range set.fresh {
		m.serving.Go(func() { m.serve(e) })
	}
	for _, e := range m.running {
		if !slices.Contains(set.all, e) {
			e.listener.Close() // before the reload is said to be over
			m.serving.Go(e.retire)
		}
	}
	for _, c := range m.Carried {
		syscall.Close(c.FD) // those in use were duplicated
	}
	m.Carried = nil
	for _, e := range set.fresh {
		if socket, ok := e.listener.(*unixsocket.Socket); ok {
			socket.Own()
		}
	}
	m.running = set.all
	m.served.Store(&set.all)
}

func (m *Endpoints) serve(e *endpoint) {
	if err := e.server.Serve(e.gate.Listen(e.listener)); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		m.Log.Error("not served any more", "what", e.name, "listen", e.addr, "cause", err.Error())
	}
}

// retireTimeout bounds the requests that are being answered when their address is
// given up, the reload that gave it up among them.
const retireTimeout = 5 * time.Second

// retire lets requests finish.
func (e *endpoint) retire() {
	ctx, cancel := context.WithTimeout(context.Background(), retireTimeout)
	defer cancel()
	if e.server.Shutdown(ctx) != nil {
		e.server.Close()
	}
}

// Bound lists the sockets that are served, as they are printed.
func (m *Endpoints) Bound() (out []l4.Bound) {
	for _, e := range m.running {
		out = append(out, l4.Bound{Name: e.name, Addr: e.addr})
	}
	return out
}

// Addrs lists the TCP addresses of the sockets that are served, and of those of next,
// which may be nil.
func (m *Endpoints) Addrs(next *EndpointSet) (out []netip.AddrPort) {
	all := m.running
	if next != nil {
		all = slices.Concat(all, next.all)
	}
	for _, e := range all {
		if tcp, ok := e.listener.Addr().(*net.TCPAddr); ok {
			out = append(out, tcp.AddrPort())
		}
	}
	return out
}

// Close ends all of it at once.
func (m *Endpoints) Close() {
	for _, e := range m.running {
		e.server.Close()
	}
	m.serving.Wait()
}

// Connections is how many connections the admin API and the metrics have at a
// time, each, where so many descriptors may be open. Scrapers and people need few.
func Connections(descriptors int) int { return min(max(descriptors/32, 4), 32) }
