package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ambassador/cmd/ambassador/internal/adminsocket"
)

// endpoints are the HTTP sockets of a process: the admin API, and the metrics
// where they have one of their own. Its methods are called one at a time.
type endpoints struct {
	env         func(string) (string, bool)
	log         *slog.Logger
	deps        adminDeps
	connections int // at a time, of each
	panics      func(part string, value any, stack []byte)
	running     []*endpoint
	serving     sync.WaitGroup // the servers, and those on their way out
}

// endpoint is one socket. A reload that keeps the address keeps the socket and
// swaps the handler.
type endpoint struct {
	// Static after construction.
	name     string // as printed
	at       string // as configured
	addr     string // as bound
	listener net.Listener
	gate     *connGate
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
			e.panics(partAdmin, v, debug.Stack())
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

// endpointSet is what a configuration wants. What is new in it is bound, and not
// served before commit.
type endpointSet struct {
	all      []*endpoint
	fresh    []*endpoint
	handlers []http.Handler // of all
}

func (s *endpointSet) add(e *endpoint, h http.Handler) {
	s.all, s.handlers = append(s.all, e), append(s.handlers, h)
}

// discard gives up what was bound.
func (s *endpointSet) discard() {
	for _, e := range s.fresh {
		e.listener.Close()
	}
}

// webSockets is where a process serves HTTP.
type webSockets struct {
	// admin is where the admin API is; nil: it is off.
	admin *adminSocket
	// metrics is the address of /livez, /readyz and /metrics alone; empty: none.
	metrics string
}

// adminSocket is where the admin API is, and how it is guarded there. Whether that is
// on TCP follows from the address.
type adminSocket struct {
	at    adminsocket.Address
	guard adminOptions
}

// prepare binds what is wanted and not bound yet. On an error nothing is left of
// that. A default admin socket that cannot be made is a warning.
func (m *endpoints) prepare(ctx context.Context, want webSockets) (*endpointSet, error) {
	set := &endpointSet{}
	err := m.prepareAdmin(ctx, set, want.admin)
	if err == nil {
		err = m.prepareMetrics(ctx, set, want.metrics)
	}
	if err != nil {
		set.discard()
		return nil, err
	}
	return set, nil
}

func (m *endpoints) prepareAdmin(ctx context.Context, set *endpointSet, want *adminSocket) error {
	if want == nil {
		return nil
	}
	at := want.at
	e := m.find("admin", at.At)
	if e == nil {
		ln, addr, err := adminsocket.Listen(ctx, m.env, at)
		if err != nil && at.At == "" {
			m.log.Warn("no admin socket: status, why and the other commands cannot ask this process", "cause", err.Error(), "mend", `set admin.listen, or --admin ADDR; --admin "" for none`)
			return nil
		}
		if err != nil {
			return err
		}
		e = m.bound(set, "admin", at.At, addr, ln, adminTimeout)
	} else if tcp, ok := e.listener.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() && !at.Unsafe {
		return fmt.Errorf("admin: listen %s: others can reach the admin API there; listen on 127.0.0.1 or a unix socket, or set admin.unsafe_admin_listen: true", e.addr)
	}
	guard := want.guard
	guard.TCP = e.listener.Addr().Network() != "unix"
	set.add(e, newAdminHandler(m.deps, guard))
	return nil
}

func (m *endpoints) prepareMetrics(ctx context.Context, set *endpointSet, at string) error {
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
		e = m.bound(set, "metrics", at, ln.Addr().String(), ln, metricsTimeout)
	}
	set.add(e, newMetricsOnlyHandler(m.deps))
	return nil
}

// find is the running endpoint of that name and address; nil if there is none.
func (m *endpoints) find(name, at string) *endpoint {
	i := slices.IndexFunc(m.running, func(e *endpoint) bool { return e.name == name && e.at == at })
	if i < 0 {
		return nil
	}
	return m.running[i]
}

func (m *endpoints) bound(set *endpointSet, name, at, addr string, ln net.Listener, timeout time.Duration) *endpoint {
	e := &endpoint{name: name, at: at, addr: addr, listener: ln, panics: m.panics, pace: newTurns(requestGap),
		gate: &connGate{what: name, max: m.connections, log: m.log}}
	e.server = newHTTPServer(e, e.gate, timeout, m.log)
	set.fresh = append(set.fresh, e)
	return e
}

// commit serves the set, and retires what is not in it.
func (m *endpoints) commit(set *endpointSet) {
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

func (m *endpoints) serve(e *endpoint) {
	if err := e.server.Serve(e.gate.listen(e.listener)); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		m.log.Error("not served any more", "what", e.name, "listen", e.addr, "cause", err.Error())
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

// close ends all of it at once.
func (m *endpoints) close() {
	for _, e := range m.running {
		e.server.Close()
	}
	m.serving.Wait()
}

// webConnections is how many connections the admin API and the metrics have at a
// time, each, where so many descriptors may be open. Scrapers and people need few.
func webConnections(descriptors int) int { return min(max(descriptors/32, 4), 32) }
