package integration

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"
)

// cutting is a test in which every session is cut, and in which every line is sent once.
type cutting struct {
	t testing.TB

	mu   sync.Mutex
	seen map[string]bool // guarded by mu; the lines that servers have received
	back map[string]int  // guarded by mu; how many lines of each session have come back
	ends chan error      // one for each end of a session: nil if it was a reset
}

// wasReset returns an error unless err says that a connection was reset. A write after
// the reset fails with EPIPE; after a FIN alone it does not fail.
func wasReset(err error, writing bool) error {
	if errors.Is(err, syscall.ECONNRESET) || writing && errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return fmt.Errorf("it ended with %w, want a reset", err)
}

// serve is an echo of lines. A connection without a line is a health probe.
func (k *cutting) serve(_ *server, c duplex) {
	in := bufio.NewReader(c)
	for lines := 0; ; lines++ {
		line, err := in.ReadString('\n')
		if err != nil && lines == 0 && line == "" {
			return
		}
		if err != nil {
			k.ends <- wasReset(err, false)
			return
		}
		k.mu.Lock()
		if k.seen[line] {
			k.t.Errorf("%q was served twice", line)
		}
		k.seen[line] = true
		k.mu.Unlock()
		if _, err := io.WriteString(c, line); err != nil {
			k.ends <- wasReset(err, true)
			return
		}
	}
}

// use sends numbered lines through a session, and waits for each, until it ends. It closes
// started after the first.
func (k *cutting) use(c net.Conn, name string, started chan<- struct{}) {
	in := bufio.NewReader(c)
	for n := 0; ; n++ {
		line := fmt.Sprintf("%s line %d\n", name, n)
		if _, err := io.WriteString(c, line); err != nil {
			k.ends <- wasReset(err, true)
			return
		}
		got, err := in.ReadString('\n')
		if err != nil {
			k.ends <- wasReset(err, false)
			return
		}
		if got != line {
			k.t.Errorf("the echo of %q is %q", line, got)
		}
		k.mu.Lock()
		k.back[name]++
		k.mu.Unlock()
		if n == 0 {
			close(started)
		}
	}
}

// eachCut is how many sessions of each kind a round has.
const eachCut = 15

// newCutting makes a test with a configuration of three listeners.
func newCutting(t testing.TB) (k *cutting, file string) {
	t.Helper()
	keys := newPKI(t)
	k = &cutting{t: t, seen: map[string]bool{}, back: map[string]int{}, ends: make(chan error, 6*eachCut)}
	plain, secure := startServer(t, nil, k.serve), startServer(t, keys.mtls(t), k.serve)
	return k, writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  plain: {listen: "127.0.0.1:0", upstream: plain}
  out: {listen: "127.0.0.1:0", upstream: secure}
  in: {listen: "127.0.0.1:0", upstream: plain, tls: {identity: server, client: none}}
upstreams:
  secure: {endpoints: ["%s"], tls: {identity: me, server_name: localhost, ca: %s}}
  plain: {endpoints: ["%s"]}
identities:
  me: {files: {cert: %s, key: %s}}
  server: {files: {cert: %s, key: %s}}
`, secure.addr, keys.file("ca.crt"), plain.addr, keys.file("client.crt"), keys.file("client.key"), keys.file("server.crt"), keys.file("server.key")))
}

// open opens the sessions of a round, and waits until each has moved a line.
func (k *cutting) open(a *ambassador, round string) {
	k.t.Helper()
	k.mu.Lock()
	clear(k.back)
	k.mu.Unlock()
	for i := range 3 * eachCut {
		c := a.connect([]string{"plain", "out", "in"}[i%3])
		if i%3 == 2 {
			c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		}
		started := make(chan struct{})
		go k.use(c, fmt.Sprintf("%s session %d", round, i), started) // ends with the session; reset awaits it
		select {
		case <-started:
		case <-time.After(patience):
			k.t.Fatal("a session does not begin")
		}
	}
}

// reset waits until both ends of each session have ended, and expects resets.
func (k *cutting) reset(round string) {
	k.t.Helper()
	for range 6 * eachCut {
		select {
		case err := <-k.ends:
			if err != nil {
				k.t.Errorf("%s: %v", round, err)
			}
		case <-time.After(patience):
			k.t.Fatalf("%s: a session does not end", round)
		}
	}
}

// TestUpgradeCut proves that kill -9 at a random moment of an upgrade ends each session
// with a reset at both ends, so that none looks complete, and that no line is served twice.
func TestUpgradeCut(t *testing.T) {
	onlyLinux(t)
	t.Parallel()
	times, _ := size(4, 0, 200, 0)
	k, file := newCutting(t)
	check, replace, after := time.Second, time.Second, 0 // how long both parts of an upgrade take
	for n := range times {
		a := start(t, "run", "-c", file)
		round := fmt.Sprintf("kill %d", n)
		k.open(a, round)
		from, began := a.stderr.len(), time.Now()
		q, err := launch(exec.Command(binary, "upgrade", "--admin", a.addr("admin")))
		if err != nil {
			t.Fatal(err)
		}
		within := check + replace
		switch {
		case n == 0: // the first is whole
			a.awaitAfter(from, `"msg":"upgrading"`)
			check = time.Since(began)
			a.awaitAfter(from, `"msg":"upgraded"`)
			replace = time.Since(began) - check
		case n%2 == 0: // not while the next program is checked
			a.awaitAfter(from, `"msg":"upgrading"`)
			within = replace
			fallthrough
		default:
			during(time.Duration(rand.Int64N(int64(within)))) // at random, which is what is tested
		}
		killed := time.Since(began)
		a.kill(t)
		q.signal(os.Kill)
		q.exit(patience)
		if regexp.MustCompile(`"msg":"upgraded"`).MatchString(a.stderr.String()) {
			after++
		}
		k.reset(fmt.Sprintf("%s, after %v", round, killed))
	}
	t.Logf("%d kills within %v + %v, %d after the upgrade", times, check, replace, after)
}
