package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// serveAs is the environment variable that makes the test's binary an echo server
// instead: "ADDR PKI-FOLDER". It demands a client certificate. As a process of its
// own it can be killed and stopped.
const serveAs = "AMBASSADOR_TEST_SERVE"

func serveForever(how string) int {
	if at, ok := strings.CutPrefix(how, "dns "); ok {
		return serveName(at)
	}
	if dir, ok := strings.CutPrefix(how, "echoes "); ok {
		if err := echoesForever(dir); err != nil {
			fmt.Println(err)
			return 1
		}
		return 0
	}
	addr, dir, _ := strings.Cut(how, " ")
	cfg, err := (&pki{dir: dir}).server("server", "ca")
	if err == nil {
		var s *server
		if s, err = serveAt(addr, cfg, echo); err == nil {
			fmt.Println("listening echo", s.addr)
			io.Copy(io.Discard, os.Stdin) // ends with the test that started it
			return 0
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// serveName answers for one name, which is 127.0.0.1: "ADDR NAME". It does not end by
// itself.
func serveName(how string) int {
	addr, name, _ := strings.Cut(how, " ")
	n, err := newNameserver(addr, map[string]string{name: "127.0.0.1"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	n.serve()
	return 0
}

// victim is an mTLS echo server in a process of its own.
type victim struct {
	addr string
	keys *pki
	*process
}

// startVictim starts one, on a free port if addr is "127.0.0.1:0".
func startVictim(t testing.TB, keys *pki, addr string) *victim {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serveAs+"="+addr+" "+keys.dir)
	pr, pw, err := os.Pipe() // its end ends the server
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = pr
	p, err := launch(cmd)
	pr.Close()
	if err != nil {
		t.Fatal(err)
	}
	v := &victim{keys: keys, process: p}
	t.Cleanup(func() {
		pw.Close()
		v.kill()
	})
	m, err := p.stdout.awaitAfter(0, regexp.MustCompile(`(?m)^listening echo (\S+)$`), patience, p.exited)
	if err != nil {
		t.Fatalf("%v; %s", err, p.stderr)
	}
	v.addr = m[1]
	return v
}

// kill is SIGKILL, and returns when the process is gone.
func (v *victim) kill() {
	v.signal(syscall.SIGKILL)
	v.exit(patience)
}

// freeze is SIGSTOP, and returns when the process has stopped: until then it may
// finish a handshake, and a session that is made cannot be made elsewhere.
func (p *process) freeze(t testing.TB) {
	t.Helper()
	p.signal(syscall.SIGSTOP)
	err := eventually(patience, func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		if err == nil && !strings.Contains(string(stat), ") T ") {
			err = errors.New("still running")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// again starts the server anew on its old address.
func (v *victim) again(t testing.TB) {
	t.Helper()
	*v = *startVictim(t, v.keys, v.addr)
}

// upstreamOf writes a configuration with a listener "front" for mTLS endpoints;
// more are lines of the upstream.
func upstreamOf(t testing.TB, keys *pki, endpoints []string, more ...string) string {
	t.Helper()
	var quoted []string
	for _, e := range endpoints {
		quoted = append(quoted, fmt.Sprintf("%q", e))
	}
	return writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  front: {listen: "127.0.0.1:0", upstream: up}
identities:
  me: {files: {cert: %s, key: %s, ca: %s}}
upstreams:
  up:
    endpoints: [%s]
    tls: {identity: me, server_name: localhost}
    %s
`, keys.file("client.crt"), keys.file("client.key"), keys.file("ca.crt"), strings.Join(quoted, ", "), strings.Join(more, "\n    ")))
}

// try1 is one session of a client: it connects, sends a line, and wants it back.
type try1 struct {
	began, ended time.Time
	client       string
	err          error
}

func (o try1) took() time.Duration { return o.ended.Sub(o.began) }

func session(addr string) (o try1) {
	o.began = time.Now()
	defer func() { o.ended = time.Now() }()
	var c net.Conn
	if c, o.err = net.Dial("tcp", addr); o.err != nil {
		return o
	}
	defer c.Close()
	o.client = c.LocalAddr().String()
	c.SetDeadline(time.Now().Add(patience))
	if _, o.err = io.WriteString(c, "hello\n"); o.err != nil {
		return o
	}
	buf := make([]byte, 6)
	_, o.err = io.ReadFull(c, buf)
	return o
}

// crowd makes sessions, a fixed number a second, until stop.
type crowd struct {
	addr string
	done chan struct{}
	wg   sync.WaitGroup

	mu  sync.Mutex
	all []try1 // guarded by mu; in the order of their ends
}

func startCrowd(addr string, perSecond int) *crowd {
	c := &crowd{addr: addr, done: make(chan struct{})}
	c.wg.Go(func() { // stop waits for it
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.wg.Go(c.one) // stop waits for it
			case <-c.done:
				return
			}
		}
	})
	return c
}

func (c *crowd) one() {
	o := session(c.addr)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, o)
}

// stop ends the crowd and returns its sessions.
func (c *crowd) stop() []try1 {
	close(c.done)
	c.wg.Wait()
	return c.all
}

// accounts are the records of sessions in the log, by client.
func accounts(t testing.TB, a *ambassador) map[string]record {
	t.Helper()
	out := map[string]record{}
	for l := range strings.Lines(a.stderr.String()) {
		var r record
		if json.Unmarshal([]byte(l), &r) == nil && r.Client != "" {
			out[r.Client] = r
		}
	}
	return out
}

// during waits for d, while the events of the test happen.
func during(d time.Duration) { <-time.After(d) }

func quantile(all []time.Duration, q float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[min(int(q*float64(len(all))), len(all)-1)]
}

// healthInterval is what the tests of health configure: short, so that they are.
func healthInterval() time.Duration {
	if long() {
		return 5 * time.Second
	}
	return time.Second
}

// three starts three victims.
func three(t testing.TB, keys *pki) (victims []*victim, addrs []string) {
	t.Helper()
	for range 3 {
		v := startVictim(t, keys, "127.0.0.1:0")
		victims, addrs = append(victims, v), append(addrs, v.addr)
	}
	return victims, addrs
}

// TestFaults are the faults that take their time, all at once, and apart from other
// tests, whose time they would take.
func TestFaults(t *testing.T) {
	for name, test := range map[string]func(*testing.T){"kill": faultKill, "stop": faultStop, "chaos": faultChaos,
		"postgres": faultPostgres, "postgres full": faultPostgresFull, "redis": faultRedisFull, "drop": faultDrop, "cut": faultCut} {
		t.Run(name, test)
	}
}

// faultKill kills one of three mTLS endpoints. It proves that no session that begins
// afterwards fails, that after a second only trials go to the endpoint, and that it is
// used again soon after its restart.
func faultKill(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	victims, addrs := three(t, keys)
	interval := healthInterval()
	a := start(t, "run", "-c", upstreamOf(t, keys, addrs, fmt.Sprintf("health: {interval: %s}", interval)))
	var open []net.Conn
	for range 6 {
		open = append(open, a.connect("front"))
		line(t, open[len(open)-1], "before")
	}
	c := startCrowd(a.addr("front"), 50)
	during(2 * time.Second)
	killing := time.Now()
	victims[0].kill()
	killed := time.Now()
	endOf(t, a, open, addrs[0])
	during(4*interval + time.Second)
	victims[0].again(t)
	back := time.Now()
	bound := 2*interval + 2*interval/10 + 2*time.Second
	during(bound + time.Second)
	all := c.stop()
	a.metric("ambassador_sessions_total", float64(len(all)))

	records := accounts(t, a)
	failures, cut, retried, late := 0, 0, 0, 0
	detected, returned := killed, time.Time{}
	for _, o := range all {
		r := records[o.client]
		switch {
		case o.err != nil && o.began.After(killed):
			failures++
			t.Errorf("a session that began %v after the kill: %v; %s %s %s", o.began.Sub(killed), o.err, r.Stage, r.Reason, r.Cause)
		case o.err != nil && o.ended.After(killing):
			cut++
			if r.Reason != "upstream_reset" && r.Reason != "upstream_early_close" { // the latter before its first byte
				t.Errorf("a session that was open at the kill ended as %s: %s", r.Reason, r.Cause)
			}
		case o.err != nil:
			t.Errorf("a session before the kill: %v", o.err)
		}
		if o.began.After(killed) && o.began.Before(back) && r.Attempts > 1 {
			if retried++; o.began.After(detected) {
				detected = o.began
			}
			if o.began.After(killed.Add(time.Second)) {
				late++
			}
		}
		if o.began.After(back) && r.Address == addrs[0] && (returned.IsZero() || o.began.Before(returned)) {
			returned = o.began
		}
	}
	t.Logf("kill: %d sessions at 50/s, %d failed after the kill, %d cut by it, %d needed a second attempt, the last %v after the kill; used again %v after its return (bound %v)",
		len(all), failures, cut, retried, detected.Sub(killed).Round(time.Millisecond), returned.Sub(back).Round(time.Millisecond), bound)
	if late > 0 {
		t.Errorf("%d sessions were sent to the dead endpoint more than a second after the kill", late)
	}
	if returned.IsZero() || returned.Sub(back) > bound {
		t.Errorf("used again %v after its return, want within %v", returned.Sub(back), bound)
	}
}

// endOf checks the sessions that were open when the server at addr was killed: its own
// sessions end, with a FIN if it had read everything, else with a reset, and are
// recorded so; others go on.
func endOf(t *testing.T, a *ambassador, open []net.Conn, addr string) {
	t.Helper()
	ended := 0
	for _, c := range open {
		io.WriteString(c, "after\n") // to a server that is gone: it answers with a reset
		buf := make([]byte, 6)
		if _, err := io.ReadFull(c, buf); err == nil {
			continue
		}
		ended++
		c.Close()
		r, err := logged(a.process, peerOf(a.process, c))
		if err != nil || r.Address != addr || r.Reason != "upstream_reset" && !(r.Reason == "closed" && r.Truncated) {
			t.Errorf("a session that was open at the kill: %s %s truncated=%v, %v", r.Address, r.Reason, r.Truncated, err)
		}
	}
	if ended != 2 {
		t.Errorf("%d of 6 open sessions ended with the kill of one of three", ended)
	}
}

// faultStop proves that an endpoint that is stopped, while the kernel still accepts
// for it, delays few sessions, and none for longer than an attempt.
func faultStop(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	const attempt = time.Second
	most := attempt + attempt/2
	if on("AMBASSADOR_TEST_RACE") { // which is several times slower
		most += attempt / 2
	}
	// A session has waited if it needed a second attempt: on a busy machine the others
	// may take as long as half an attempt, too.
	waited := func(a *ambassador, all []try1) (those []try1, longest time.Duration) {
		records := accounts(t, a)
		for _, o := range all {
			if o.err != nil {
				t.Errorf("a session failed: %v", o.err)
			}
			if records[o.client].Attempts > 1 {
				those = append(those, o)
			}
			longest = max(longest, o.took())
		}
		return those, longest
	}
	setup := func() (*victim, *ambassador) {
		victims, addrs := three(t, keys)
		a := start(t, "run", "-c", upstreamOf(t, keys, addrs, fmt.Sprintf("connect: {attempt_timeout: %s}", attempt), "breaker: {failures: 5}"))
		a.metric("ambassador_addresses{upstream=up,health=healthy}", 3)
		victims[0].freeze(t)
		return victims[0], a
	}

	stopped, a := setup()
	var sequence []try1
	for begin := time.Now(); time.Since(begin) < 12*time.Second; {
		sequence = append(sequence, session(a.addr("front")))
	}
	stopped.signal(syscall.SIGCONT)
	a.metric("ambassador_sessions_total", float64(len(sequence)))
	slow, longest := waited(a, sequence)
	t.Logf("stop, in sequence: %d sessions in 12 s, %d waited, the longest %v (failures: 5, attempt_timeout: %v)", len(sequence), len(slow), longest.Round(time.Millisecond), attempt)
	if len(slow) == 0 || len(slow) > 5 || longest > most {
		t.Errorf("%d sessions waited, the longest %v; want 1 to 5 and %v", len(slow), longest, attempt)
	}

	stopped, a = setup()
	var mu sync.Mutex
	var together []try1
	var wg sync.WaitGroup
	begin, addr := time.Now(), a.addr("front")
	for range 20 {
		wg.Go(func() { // waited for below
			for time.Since(begin) < 8*time.Second {
				o := session(addr)
				mu.Lock()
				together = append(together, o)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	stopped.signal(syscall.SIGCONT)
	a.metric("ambassador_sessions_total", float64(len(together)))
	slow, longest = waited(a, together)
	first := begin.Add(time.Hour) // when the first that waited began
	for _, o := range slow {
		if o.began.Before(first) {
			first = o.began
		}
	}
	late := slices.DeleteFunc(slices.Clone(slow), func(o try1) bool { return o.began.Before(first.Add(most)) })
	t.Logf("stop, 20 at a time: %d sessions in 8 s, %d waited, the longest %v; %d of those that began after the first attempt_timeout", len(together), len(slow), longest.Round(time.Millisecond), len(late))
	if len(slow) == 0 || len(late) > 0 || longest > most {
		t.Errorf("%d sessions waited, %d of those that began after the first attempt_timeout; the longest wait was %v", len(slow), len(late), longest)
	}
}

// TestDeadDestination proves that if its only destination is dead, a session is refused
// at once, with the cause and the time of the next attempt, and that the first success
// closes the breaker.
func TestDeadDestination(t *testing.T) {
	keys := newPKI(t)
	v := startVictim(t, keys, "127.0.0.1:0")
	a := start(t, "run", "-c", upstreamOf(t, keys, []string{v.addr}, "breaker: {open: 2s, max_open: 4s}", "health: {interval: 30s}"))
	addr := a.addr("front")
	a.metric("ambassador_addresses{upstream=up,health=healthy}", 1)
	v.kill()
	for range 5 {
		session(addr)
	}
	a.await(`"msg":"breaker".*"from":"closed","to":"open","cause":".*refused.*"retry_in":`)
	var took []time.Duration
	for range 200 {
		o := session(addr)
		if o.err == nil {
			t.Fatal("a session to nobody went well")
		}
		took = append(took, o.took())
	}
	a.metric("ambassador_sessions_total{stage=permit,reason=breaker_open}", 190)
	a.metric("ambassador_breakers{upstream=up,state=open}", 1)
	if status, _ := a.ask("status"); !strings.Contains(status, "open, next attempt in") || !strings.Contains(status, "connection refused") {
		t.Errorf("status:\n%s", status)
	}
	m := a.await(`"reason":"breaker_open","cause":"([^"]*)".*"retry_in":([\d.]+)`)
	if !strings.Contains(m[1], "refused") {
		t.Errorf("cause %q", m[1])
	}
	t.Logf("dead: a refused session takes %v at the median, %v at p99; retry_in %s s, cause %q", quantile(took, .5), quantile(took, .99), m[2], m[1])
	if got := quantile(took, .5); got > 2*time.Millisecond && !on("AMBASSADOR_TEST_RACE") { // which is several times slower
		t.Errorf("a refused session takes %v at the median, want under 2 ms", got)
	}
	v.again(t)
	back := time.Now()
	if err := eventually(patience, func() error { return session(addr).err }); err != nil {
		t.Fatal(err)
	}
	t.Logf("dead: the first session went well %v after the return (max_open: 4s)", time.Since(back).Round(time.Millisecond))
	a.await(`"msg":"breaker".*"from":"half_open","to":"closed"`)
	for range 20 {
		if o := session(addr); o.err != nil {
			t.Errorf("after the first success: %v", o.err)
		}
	}
}

// faultChaos proves that while servers are killed and come back at random,
// one of three always alive, no session fails but those that a kill has cut.
func faultChaos(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	victims, addrs := three(t, keys)
	a := start(t, "run", "-c", upstreamOf(t, keys, addrs, "health: {interval: 500ms}", "balance: least_connections"))
	lasts := 20 * time.Second
	if long() {
		lasts = 60 * time.Second
	}
	c := startCrowd(a.addr("front"), 50)
	rng := noise(4)
	random := func(n int) int {
		var b [1]byte
		rng.Read(b[:])
		return int(b[0]) % n
	}
	type kill struct{ from, to time.Time }
	var kills []kill
	for begin := time.Now(); time.Since(begin) < lasts; {
		i := random(3)
		k := kill{from: time.Now()}
		victims[i].kill()
		k.to = time.Now()
		kills = append(kills, k)
		during(time.Duration(random(250)) * 8 * time.Millisecond)
		victims[i].again(t)
		during(time.Duration(random(250)) * 4 * time.Millisecond)
	}
	all := c.stop()
	cut, failures := 0, 0
	for _, o := range all {
		if o.err == nil {
			continue
		}
		if slices.ContainsFunc(kills, func(k kill) bool { return o.began.Before(k.to) && o.ended.After(k.from) }) {
			cut++
			continue
		}
		failures++
		t.Errorf("a session failed after %v: %v", o.took(), o.err)
	}
	t.Logf("chaos: %d kills in %v, %d sessions, %d cut by a kill, %d failed otherwise", len(kills), lasts, len(all), cut, failures)
}

// BenchmarkProbes measures what probing 20 idle mTLS addresses every 5 s costs, in percent
// of a processor. TestProbesComeInGroups (l4/upstream) counts the probes.
func BenchmarkProbes(b *testing.B) {
	keys := newPKI(b)
	var addrs []string
	for range 20 {
		addrs = append(addrs, startServer(b, keys.mtls(b), echo).addr)
	}
	a := start(b, "run", "-c", upstreamOf(b, keys, addrs, "health: {interval: 5s, idle_interval: 0s}"))
	a.metric("ambassador_addresses{upstream=up,health=healthy}", 20)
	cpu := func() float64 {
		v, err := sample(a.process, "process_cpu_seconds_total")
		if err != nil {
			b.Fatal(err)
		}
		return v
	}
	before, begin := cpu(), time.Now()
	for b.Loop() {
		during(20 * time.Second)
	}
	b.ReportMetric((cpu()-before)/time.Since(begin).Seconds()*100, "%cpu")
}
