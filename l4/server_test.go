package l4

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/l4/upstream"
	"ambassador/l4/watch"
)

// fixture is a server with one listener, "in", and one upstream, "up".
type fixture struct {
	*Server
	t       *testing.T
	records chan *outcome.Record
	cancel  context.CancelFunc
}

// serve starts a server, which ends before the test does.
func serve(t *testing.T, o Options, cfg Config) *fixture {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	f := &fixture{t: t, records: make(chan *outcome.Record, 1000), cancel: cancel}
	o.Observer.Ended = func(r *outcome.Record) { f.records <- r }
	f.Server = New(ctx, o)
	watchLoops(t, f.Server)
	t.Cleanup(func() {
		cancel()
		f.Shutdown(ctx, Drain{})
	})
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	return f
}

// endpointsAt configures an endpoint for each address.
func endpointsAt(addresses ...string) (out []upstream.EndpointConfig) {
	for _, a := range addresses {
		out = append(out, upstream.EndpointConfig{Address: a})
	}
	return out
}

func oneUpstream(endpoints ...string) Config {
	return Config{
		Listeners: []ListenerConfig{{Name: "in", Addresses: []string{"127.0.0.1:0"}, Upstream: "up"}},
		Upstreams: []upstream.Config{{Name: "up", Endpoints: endpointsAt(endpoints...)}},
	}
}

// record waits for the next record.
func (f *fixture) record() *outcome.Record {
	f.t.Helper()
	select {
	case r := <-f.records:
		return r
	case <-time.After(l4test.Bound):
		f.t.Fatal("no record")
		return nil
	}
}

// client connects to the listener at index i.
func (f *fixture) client(i int) *net.TCPConn {
	f.t.Helper()
	c, err := net.Dial("tcp", f.Listening()[i].Addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(l4test.Bound))
	return c.(*net.TCPConn)
}

// ping sends a line and reads it back.
func ping(t *testing.T, c net.Conn) {
	t.Helper()
	io.WriteString(c, "ping\n")
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "ping\n" {
		t.Fatalf("echo answered %q, %v", line, err)
	}
}

// until polls ok, for a condition that nothing signals.
func (f *fixture) until(what string, ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(l4test.Bound); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			f.t.Fatalf("no %s: %+v", what, f.Sessions(math.MaxInt))
		}
	}
}

func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v, want a reset", err)
	}
}

// wantRefused connects to the first listener, sends text, and expects a reset. The
// reset may arrive before connect returns.
func (f *fixture) wantRefused(text ...string) {
	f.t.Helper()
	c, err := net.Dial("tcp", f.Listening()[0].Addr)
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(l4test.Bound))
		_, wrote := io.WriteString(c, strings.Join(text, "")) // clears the error of a reset that arrived before
		_, err = io.Copy(io.Discard, c)
		err = errors.Join(wrote, err)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		f.t.Errorf("the client sees %v, want a reset", err)
	}
}

func TestSessionRoundTripAndRecord(t *testing.T) {
	addr := l4test.Backend(t, l4test.Echo)
	f := serve(t, Options{}, oneUpstream(addr))
	c := f.client(0)
	ping(t, c)
	f.until("a live session with its bytes", func() bool {
		live := f.Sessions(math.MaxInt) // the relay counts shortly after it has written
		return len(live) == 1 && live[0].Stage == outcome.StageRelay && live[0].BytesUp == 5 && live[0].BytesDown == 5
	})
	c.CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("after our FIN: %q, %v", rest, err)
	}
	r := f.record()
	if r.Reason != outcome.Closed || r.Stage != outcome.StageRelay || r.FirstClose != "downstream" || r.BytesUp != 5 || r.BytesDown != 5 ||
		r.Listener != "in" || r.Upstream != "up" || r.Endpoint != addr || r.Address != addr || r.Attempts != 1 ||
		r.Client != c.LocalAddr().String() || r.Establish <= 0 || r.Duration < r.Establish || r.Cause != "" {
		t.Errorf("record: %+v", r)
	}
	if got := f.Recent(math.MaxInt); len(got) != 1 || got[0].ID != r.ID {
		t.Errorf("recent: %+v", got)
	}
	if tr := f.Traffic(); len(tr) != 1 || tr[0].Up != 5 || tr[0].Down != 5 || tr[0].Active != 0 {
		t.Errorf("traffic: %+v", tr)
	}
}

// The bytes of a session are counted once while it ends: a counter that counted them
// twice would have to decrease again.
func TestTrafficCountsAnEndingSessionOnce(t *testing.T) {
	f := serve(t, Options{}, oneUpstream(l4test.Backend(t, l4test.Echo)))
	ping(t, f.client(0))
	sess := f.live()[0]
	sess.account(relay.Result{Up: 5, Down: 5}) // as Done does, before close
	if tr := f.Traffic(); tr[0].Up != 5 || tr[0].Down != 5 || tr[0].Active != 1 {
		t.Errorf("while it ends: %+v", tr)
	}
}

func TestSessionThatOnlyKnocksIsAProbe(t *testing.T) {
	f := serve(t, Options{}, oneUpstream(l4test.Backend(t, l4test.Echo)))
	f.client(0).Close()
	if r := f.record(); r.Reason != outcome.Probe || r.FirstClose != "downstream" {
		t.Errorf("record: %+v", r)
	}
}

func TestRefusedUpstreamIsAReset(t *testing.T) {
	cfg := oneUpstream(l4test.RefusedAddress(t))
	cfg.Upstreams[0].Connect.Attempts = 1
	f := serve(t, Options{}, cfg)
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.Refused || r.Stage != outcome.StageDial || r.Cause == "" || r.BytesUp != 0 {
		t.Errorf("record: %+v", r)
	}
}

func TestMissingUnixUpstreamIsUnreachable(t *testing.T) {
	cfg := oneUpstream("unix:" + filepath.Join(t.TempDir(), "nobody"))
	cfg.Upstreams[0].Connect.Attempts = 1
	f := serve(t, Options{}, cfg)
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.Unreachable {
		t.Errorf("record: %+v", r)
	}
}

func TestUpstreamEarlyClose(t *testing.T) {
	f := serve(t, Options{}, oneUpstream(l4test.Backend(t, func(*net.TCPConn) {})))
	c := f.client(0)
	io.Copy(io.Discard, c)
	c.Close()
	if r := f.record(); r.Reason != outcome.UpstreamEarlyClose || r.FirstClose != "upstream" {
		t.Errorf("record: %+v", r)
	}
}

func TestProcessLimitRefusesAndRecords(t *testing.T) {
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.MaxSessions = 1
	f := serve(t, Options{}, cfg)
	first := f.client(0)
	ping(t, first)
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.Limit || r.Stage != outcome.StageAdmit || r.Limit != "limits.connections" {
		t.Errorf("record: %+v", r)
	}
	first.Close()
	f.record()
	ping(t, f.client(0))
}

// If a burst of connections is accepted before any is admitted, exactly the surplus is
// refused: refused sessions take no slot from others.
func TestProcessLimitRefusesOnlyTheSurplus(t *testing.T) {
	cfg := oneUpstream("127.0.0.1:1")
	cfg.MaxSessions = 5
	f := serve(t, Options{}, cfg)
	var burst []*session
	for range 40 {
		sess := &session{server: f.Server, seq: f.seq.Add(1), route: f.listeners[0].route.Load(), traffic: f.listeners[0].route.Load().traffic}
		f.mu.Lock()
		f.sessions[sess.seq] = sess
		f.mu.Unlock()
		burst = append(burst, sess)
	}
	admitted := func() (n int) {
		for _, sess := range burst {
			if sess.slot || sess.admit() == nil {
				n++
			}
		}
		return n
	}
	if n := admitted(); n != cfg.MaxSessions {
		t.Errorf("%d of %d are admitted, want %d", n, len(burst), cfg.MaxSessions)
	}
	f.forget(burst[0], &outcome.Record{}) // it was admitted: its slot is free again
	f.forget(burst[39], &outcome.Record{})
	burst = burst[1:39]
	if n := admitted(); n != cfg.MaxSessions {
		t.Errorf("after one has ended %d are admitted, want %d", n, cfg.MaxSessions)
	}
	for _, sess := range burst {
		f.forget(sess, &outcome.Record{})
	}
}

// dialsForever signals each dial on began. A dial ends only with its context.
func dialsForever(began chan<- struct{}) netconn.DialFunc {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		began <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
}

func TestClientResetCancelsADialInFlight(t *testing.T) {
	began := make(chan struct{}, 9)
	cfg := oneUpstream("127.0.0.1:1")
	cfg.Upstreams[0].Connect = upstream.ConnectConfig{Timeout: time.Hour, AttemptTimeout: time.Hour}
	f := serve(t, Options{Dial: dialsForever(began)}, cfg)
	c := f.client(0)
	io.WriteString(c, "early bytes stay unread")
	<-began
	c.SetLinger(0)
	c.Close()
	if r := f.record(); r.Reason != outcome.DownstreamReset || r.Stage != outcome.StageDial {
		t.Errorf("record: %+v", r)
	}
}

// A client that has sent a FIN and waits for the answer does not count as lost.
func TestClientFINDuringTheDialCancelsNothing(t *testing.T) {
	addr := l4test.Backend(t, l4test.Echo)
	release := make(chan struct{})
	slow := func(ctx context.Context, network, address string) (net.Conn, error) {
		<-release
		return netconn.Dialer(relay.New(), 0)(ctx, network, address)
	}
	f := serve(t, Options{Dial: slow}, oneUpstream(addr))
	c := f.client(0)
	io.WriteString(c, "all")
	c.CloseWrite()
	time.AfterFunc(3*watch.Delay, func() { close(release) }) // past the start of the watch
	if got, err := io.ReadAll(c); string(got) != "all" || err != nil {
		t.Errorf("answer %q, %v", got, err)
	}
	if r := f.record(); r.Reason != outcome.Closed {
		t.Errorf("record: %+v", r)
	}
}

func TestKill(t *testing.T) {
	began := make(chan struct{}, 9)
	addr := l4test.Backend(t, l4test.Echo)
	cfg := oneUpstream(addr)
	cfg.Listeners = append(cfg.Listeners, ListenerConfig{Name: "hung", Addresses: []string{"127.0.0.1:0"}, Upstream: "nowhere"})
	cfg.Upstreams = append(cfg.Upstreams, upstream.Config{Name: "nowhere", Endpoints: endpointsAt("127.0.0.1:1"), Connect: upstream.ConnectConfig{AttemptTimeout: time.Hour}})
	f := serve(t, Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == addr {
			return netconn.Dialer(relay.New(), 0)(ctx, network, address)
		}
		return dialsForever(began)(ctx, network, address)
	}}, cfg)
	relayed := f.client(0)
	ping(t, relayed)
	dialling := f.client(1)
	<-began
	for _, r := range f.Sessions(math.MaxInt) {
		if !f.Kill(r.ID, "uid 7") {
			t.Errorf("no session %s to kill", r.ID)
		}
	}
	wantReset(t, relayed)
	wantReset(t, dialling)
	for range 2 {
		if r := f.record(); r.Reason != outcome.Killed || r.KilledBy != "uid 7" {
			t.Errorf("record: %+v", r)
		}
	}
	for _, id := range []string{"", "1", "zzzz-1", f.prefix + "1", f.prefix + "x"} {
		if f.Kill(id, "") {
			t.Errorf("Kill(%q) found something", id)
		}
	}
}

func TestReloadKeepsSocketsAndSessions(t *testing.T) {
	one, two := l4test.Backend(t, l4test.Echo), l4test.Backend(t, func(c *net.TCPConn) { io.WriteString(c, "two\n"); io.Copy(io.Discard, c) })
	cfg := oneUpstream(one)
	cfg.Upstreams[0].Key = "one"
	f := serve(t, Options{}, cfg)
	before := f.Listening()[0].Addr
	c := f.client(0)
	ping(t, c)

	cfg = oneUpstream(two)
	cfg.Upstreams[0].Key = "two"
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	if after := f.Listening()[0].Addr; after != before {
		t.Errorf("the listener moved from %s to %s", before, after)
	}
	ping(t, c)
	if line, err := bufio.NewReader(f.client(0)).ReadString('\n'); line != "two\n" {
		t.Errorf("a new session after the reload reads %q, %v", line, err)
	}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	taken := l4test.Backend(t, l4test.Echo)
	f := serve(t, Options{}, oneUpstream(taken))
	bad := oneUpstream(taken)
	bad.Listeners = append(bad.Listeners,
		ListenerConfig{Name: "fresh", Addresses: []string{"127.0.0.1:0"}, Upstream: "up"},
		ListenerConfig{Name: "second", Addresses: []string{taken}, Upstream: "up"})
	err := f.Apply(bad)
	if err == nil || !strings.Contains(err.Error(), "listener second: listen "+taken) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("error %v; want it to name the listener, the address and the cause", err)
	}
	if got := f.Listening(); len(got) != 1 || got[0].Name != "in" {
		t.Errorf("listening after a failed Apply: %v", got)
	}
	ping(t, f.client(0))
}

func TestPlaintextOnAnOpenAddressIsRefused(t *testing.T) {
	s := New(t.Context(), Options{})
	cfg := oneUpstream("127.0.0.1:1")
	cfg.Listeners[0].Addresses = []string{"0.0.0.0:0"}
	if err := s.Apply(cfg); err == nil || !strings.Contains(err.Error(), "unsafe_plaintext_listen") {
		t.Errorf("Apply = %v; want the key that allows it", err)
	}
	cfg.Listeners[0].UnsafePlaintextListen = true
	if err := s.Apply(cfg); err != nil {
		t.Errorf("with unsafe_plaintext_listen: %v", err)
	}
}

func TestUnixListener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "in.sock")
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].Addresses = []string{"unix:" + path}
	cfg.Listeners[0].Socket.Mode = 0o640
	l4test.LeaveStale(t, path)
	f := serve(t, Options{}, cfg)
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("socket %v, %v; want mode 0640", info, err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(l4test.Bound))
	ping(t, c)
	c.Close()
	if r := f.record(); r.Client != "unix:"+path || r.Reason != outcome.Closed {
		t.Errorf("record: %+v", r)
	}
	other := New(t.Context(), Options{})
	if err := other.Apply(cfg); err == nil || !strings.Contains(err.Error(), "in use by a running process") {
		t.Errorf("a second server on a live socket: %v", err)
	}
	f.Shutdown(t.Context(), Drain{})
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's file is still there: %v", err)
	}
}

func TestUnixListenerLeavesOtherFilesAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := oneUpstream("127.0.0.1:1")
	cfg.Listeners[0].Addresses = []string{"unix:" + path}
	if err := New(t.Context(), Options{}).Apply(cfg); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("Apply = %v", err)
	}
	if b, err := os.ReadFile(path); string(b) != "data" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

func TestReadyOnceEveryRequiredUpstreamWasReached(t *testing.T) {
	cfg := oneUpstream(l4test.RefusedAddress(t))
	cfg.Upstreams[0].Required = true
	cfg.Upstreams[0].Connect.Attempts = 1
	tried := make(chan outcome.Reason, 100)
	f := serve(t, Options{Observer: Observer{Upstream: upstream.Observer{Attempt: func(_ string, r outcome.Reason) { tried <- r }}}}, cfg)
	if r := <-tried; r != outcome.Refused {
		t.Fatalf("first trial: %s", r)
	}
	r := f.Ready()
	if r.Ready || len(r.Waiting) != 1 || !strings.Contains(r.Waiting[0], "upstream up: not reached yet") {
		t.Errorf("readiness of a dead upstream: %+v", r)
	}
	cfg = oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Upstreams[0].Required, cfg.Upstreams[0].Key = true, "alive"
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	for r := range tried {
		if r == outcome.OK {
			break
		}
	}
	if r := f.Ready(); !r.Ready {
		t.Errorf("readiness of a live upstream: %+v", r)
	}
	if u := f.Upstreams(); !u[0].Reached || u[0].Endpoints[0].LastReason != outcome.OK || u[0].Endpoints[0].LastSuccess == nil {
		t.Errorf("upstreams: %+v", u)
	}
}

// An upstream that has been reached stays reached when a reload changes it. Otherwise a
// reload during an outage would make every process that shares it unready.
func TestReloadInAnOutageStaysReady(t *testing.T) {
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Upstreams[0].Required = true
	f := serve(t, Options{}, cfg)
	f.until("readiness", func() bool { return f.Ready().Ready })
	cfg = oneUpstream(l4test.RefusedAddress(t))
	cfg.Upstreams[0].Required, cfg.Upstreams[0].Key = true, "down"
	cfg.Upstreams = append(cfg.Upstreams, upstream.Config{Name: "new", Key: "new", Required: true, Endpoints: endpointsAt(l4test.RefusedAddress(t))})
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	if r := f.Ready(); len(r.Waiting) != 1 || !strings.Contains(r.Waiting[0], "upstream new: not reached yet") {
		t.Errorf("readiness: %+v; want it to wait for the new upstream alone", r)
	}
}

func TestDrainEndsIdleSessionsAndLetsBusyOnesFinish(t *testing.T) {
	answer := make(chan struct{})
	late := l4test.Backend(t, func(c *net.TCPConn) {
		io.ReadAll(c)
		<-answer
		io.WriteString(c, "late answer")
	})
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Listeners = append(cfg.Listeners, ListenerConfig{Name: "late", Addresses: []string{"127.0.0.1:0"}, Upstream: "late"})
	cfg.Upstreams = append(cfg.Upstreams, upstream.Config{Name: "late", Endpoints: endpointsAt(late)})
	f := serve(t, Options{}, cfg)
	idle, busy := f.client(0), f.client(1)
	ping(t, idle)
	io.WriteString(busy, "question")
	busy.CloseWrite()
	for f.halfClosed() == 0 {
	}

	done := make(chan struct{})
	go func() { f.Shutdown(context.WithoutCancel(t.Context()), Drain{Timeout: l4test.Bound}); close(done) }() // awaited below
	if rest, err := io.ReadAll(idle); err != nil || len(rest) > 0 {
		t.Errorf("the idle client reads %q, %v; want a FIN", rest, err)
	}
	if r := f.record(); r.Reason != outcome.Drained {
		t.Errorf("idle session: %+v", r)
	}
	if r := f.Ready(); r.Ready || !r.Draining {
		t.Errorf("readiness while draining: %+v", r)
	}
	close(answer)
	if got, err := io.ReadAll(busy); string(got) != "late answer" || err != nil {
		t.Errorf("the half-closed client reads %q, %v", got, err)
	}
	if r := f.record(); r.Reason != outcome.Closed {
		t.Errorf("busy session: %+v", r)
	}
	<-done
}

// A client that has sent a request gets its answer, however long the server takes. A
// drain does not end its session, though no byte moves, and ends idle ones.
func TestDrainWaitsForAnAnswerThatIsDue(t *testing.T) {
	answer := make(chan struct{})
	thinks := l4test.Backend(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, len("question")))
		<-answer
		io.WriteString(c, "answer")
	})
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Listeners = append(cfg.Listeners, ListenerConfig{Name: "thinks", Addresses: []string{"127.0.0.1:0"}, Upstream: "thinks"})
	cfg.Upstreams = append(cfg.Upstreams, upstream.Config{Name: "thinks", Endpoints: endpointsAt(thinks)})
	f := serve(t, Options{}, cfg)
	asks := f.client(1) // the older session, which is checked first
	io.WriteString(asks, "question")
	f.until("the question is on its way", func() bool {
		live := f.Sessions(math.MaxInt)
		return len(live) == 1 && live[0].BytesUp == int64(len("question"))
	})
	idle := f.client(0)
	ping(t, idle)

	done := make(chan struct{})
	go func() { f.Shutdown(context.WithoutCancel(t.Context()), Drain{Timeout: l4test.Bound}); close(done) }() // awaited below
	if r := f.record(); r.Reason != outcome.Drained || r.Listener == "thinks" {
		t.Errorf("the first to end: %+v", r)
	}
	close(answer)
	if got, err := io.ReadAll(asks); string(got) != "answer" || err != nil {
		t.Errorf("the client reads %q, %v", got, err)
	}
	<-done
}

// A drain after a drain waits for the rest of the first one's delay.
func TestASecondDrainWaitsForTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(t.Context(), Options{})
		start := time.Now()
		s.Drain(Drain{Delay: time.Minute})
		<-time.After(10 * time.Second)
		s.Shutdown(t.Context(), Drain{Delay: time.Hour})
		if d := time.Since(start); d != time.Minute {
			t.Errorf("stopped accepting after %v", d)
		}
	})
}

// halfClosed counts the sessions of which one side is closed.
func (f *fixture) halfClosed() (n int) {
	for _, s := range f.live() {
		if flow := s.relayed(); flow != nil && flow.HalfClosed() {
			n++
		}
	}
	return n
}

func TestDrainCutsWhatIsLeftAtItsEnd(t *testing.T) {
	f := serve(t, Options{}, oneUpstream(l4test.Backend(t, l4test.Echo)))
	c := f.client(0)
	ping(t, c)
	f.Shutdown(context.WithoutCancel(t.Context()), Drain{Timeout: 100 * time.Millisecond})
	wantReset(t, c)
	if r := f.record(); r.Reason != outcome.Shutdown {
		t.Errorf("record: %+v", r)
	}
}

func TestCancelEndsEverythingAtOnce(t *testing.T) {
	began := make(chan struct{}, 9)
	cfg := oneUpstream("127.0.0.1:1")
	cfg.Upstreams[0].Connect = upstream.ConnectConfig{Timeout: time.Hour, AttemptTimeout: time.Hour}
	f := serve(t, Options{Dial: dialsForever(began)}, cfg)
	c := f.client(0)
	<-began
	f.cancel()
	wantReset(t, c)
	if r := f.record(); r.Reason != outcome.Shutdown {
		t.Errorf("record: %+v", r)
	}
}

func TestPanicEndsOneSessionOnly(t *testing.T) {
	addr, first := l4test.Backend(t, l4test.Echo), true
	f := serve(t, Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		return netconn.Dialer(relay.New(), 0)(ctx, network, address)
	}, Observer: Observer{Upstream: upstream.Observer{Phase: func(_, _ string, _ upstream.Phase, _ time.Duration) {
		if first {
			first = false
			panic("a bug")
		}
	}}}}, oneUpstream(addr))
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.Internal {
		t.Errorf("record: %+v", r)
	}
	ping(t, f.client(0))
}
