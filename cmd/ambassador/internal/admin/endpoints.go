package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ambassador/cmd/ambassador/internal/adminsocket"
	"ambassador/l4"
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

	running []*endpoint
	serving sync.WaitGroup // the servers, and those on their way out
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
}

func (s *EndpointSet) add(e *endpoint, h http.Handler) {
	s.all, s.handlers = append(s.all, e), append(s.handlers, h)
}

// Discard gives up what was bound.
func (s *EndpointSet) Discard() {
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
		ln, addr, err := adminsocket.Listen(ctx, m.Env, at)
		if err != nil && at.At == "" {
			m.Log.Warn("no admin socket: status, why and the other commands cannot ask this process", "cause", err.Error(), "hint", `set admin.listen, or --admin ADDR; --admin "" for none`)
			return nil
		}
		if err != nil {
			return err
		}
		e = m.bind(set, "admin", at.At, addr, ln, requestTimeout)
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
		var lc net.ListenConfig
		lc.SetMultipathTCP(false) // Go's default makes an MPTCP socket of every listener
		ln, err := lc.Listen(ctx, "tcp", at)
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

// find is the running endpoint of that name and address; nil if there is none.
func (m *Endpoints) find(name, at string) *endpoint {
	i := slices.IndexFunc(m.running, func(e *endpoint) bool { return e.name == name && e.at == at })
	if i < 0 {
		return nil
	}
	return m.running[i]
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
	m.running = set.all
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
