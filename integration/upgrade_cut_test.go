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
		if n == 0 {
			close(started)
		}
	}
}

// TestUpgradeCut proves that kill -9 at a random moment of an upgrade ends each session
// with a reset at both ends, so that none looks complete, and that no line is served twice.
func TestUpgradeCut(t *testing.T) {
	onlyLinux(t)
	t.Parallel()
	times, _ := size(4, 0, 200, 0)
	const each = 15 // sessions of each kind
	keys := newPKI(t)
	k := &cutting{t: t, seen: map[string]bool{}, ends: make(chan error, 6*each)}
	plain, secure := startServer(t, nil, k.serve), startServer(t, keys.mtls(t), k.serve)
	file := writeFile(t, "ambassador.yaml", fmt.Sprintf(`
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
	check, replace, after := time.Second, time.Second, 0 // how long both parts of an upgrade take
	for n := range times {
		a := start(t, "run", "-c", file)
		for i := range 3 * each {
			c := a.connect([]string{"plain", "out", "in"}[i%3])
			if i%3 == 2 {
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
			}
			started := make(chan struct{})
			go k.use(c, fmt.Sprintf("kill %d session %d", n, i), started) // ends with the session; awaited below
			select {
			case <-started:
			case <-time.After(patience):
				t.Fatal("a session does not begin")
			}
		}
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
		a.kill(t)
		q.signal(os.Kill)
		q.exit(patience)
		if regexp.MustCompile(`"msg":"upgraded"`).MatchString(a.stderr.String()) {
			after++
		}
		for range 6 * each {
			select {
			case err := <-k.ends:
				if err != nil {
					t.Errorf("kill %d, after %v: %v", n, time.Since(began), err)
				}
			case <-time.After(patience):
				t.Fatalf("kill %d: a session does not end", n)
			}
		}
	}
	t.Logf("%d kills within %v + %v, %d after the upgrade", times, check, replace, after)
}
