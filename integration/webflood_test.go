package integration

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"testing"
	"time"
)

// startWithDescriptors is start with a descriptor limit, as `ulimit -n` sets it.
func startWithDescriptors(t *testing.T, n int, args ...string) *ambassador {
	t.Helper()
	script := fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, n)
	return startCmd(t, exec.Command("sh", append([]string{"-c", script, binary}, args...)...))
}

// keepAlives opens connections to an HTTP server, each with one request that is
// answered, and holds them until the end of the test. It ends with the first that
// is not answered.
func keepAlives(t *testing.T, addr string, n int) (held int) {
	t.Helper()
	for ; held < n; held++ {
		c, err := dialTCP(addr)
		if err != nil {
			return held
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(c, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if _, err := c.Read(make([]byte, 1024)); err != nil {
			return held
		}
	}
	return held
}

// scrapeWithoutReading asks for the metrics again and again, over connections of
// which it holds the last hundred, until stop is closed.
func scrapeWithoutReading(addr string, stop <-chan struct{}) {
	var held [100]net.Conn
	defer func() {
		for _, c := range held {
			if c != nil {
				c.Close()
			}
		}
	}()
	for i := 0; ; i = (i + 1) % len(held) {
		select {
		case <-stop:
			return
		default:
		}
		if held[i] != nil {
			held[i].Close()
		}
		c, err := dialTCP(addr)
		if held[i] = c; err == nil {
			io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
		}
	}
}

// getFrom asks for a page from a local address, over a connection of its own.
func getFrom(from, url string) error {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c := http.Client{Timeout: patience, Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // what is asked is whether it answers
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || len(text) == 0) {
		err = fmt.Errorf("%s: status %d: %s", url, resp.StatusCode, text)
	}
	return err
}

func openDescriptors(t *testing.T, a *ambassador) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.cmd.Process.Pid))
	if err != nil {
		t.Skip("no /proc:", err)
	}
	return len(list)
}

// TestFloodOfAdminAndMetrics proves that clients of the admin API and of the metrics
// block neither sessions nor each other, however many connections they hold.
func TestFloodOfAdminAndMetrics(t *testing.T) {
	t.Parallel()
	srv := startServer(t, nil, echoLines)
	a := startWithDescriptors(t, 1024, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
admin: {listen: "127.0.0.1:0"}
metrics: {listen: "127.0.0.1:0"}
log: {level: warn}
upstreams:
  back: {endpoints: [%q]}
listeners:
  front: {listen: "127.0.0.1:0", upstream: back}
`, srv.addr)))
	admin, metrics := a.addr("admin"), a.addr("metrics")
	line(t, a.connect("front"), "before")
	before := openDescriptors(t, a)
	for name, addr := range map[string]string{"metrics": metrics, "admin": admin} {
		if n := keepAlives(t, addr, 2000); n < 2000 {
			t.Errorf("connection %d to %s was not answered", n+1, name)
		}
	}
	if now := openDescriptors(t, a); now > before+100 {
		t.Errorf("%d descriptors are open, and %d were before", now, before)
	}
	// As many sessions as there may be, all at once, while others go on flooding.
	stop := make(chan struct{})
	var flood sync.WaitGroup
	defer flood.Wait()
	defer close(stop)
	for range 4 {
		flood.Go(func() { scrapeWithoutReading(metrics, stop) }) // awaited above
	}
	for i := range 440 {
		line(t, a.connect("front"), fmt.Sprint("session ", i))
	}
	for _, url := range []string{"http://" + metrics + "/metrics", "http://" + metrics + "/readyz", "http://" + admin + "/readyz", "http://" + admin + "/metrics"} {
		start := time.Now()
		if err := getFrom("127.0.0.2", url); err != nil {
			t.Errorf("another client: %v", err)
		}
		t.Logf("another client: %s after %v", url, time.Since(start).Round(time.Millisecond))
	}
	if _, code := a.ask("status"); code != 0 {
		t.Errorf("status ends with code %d", code)
	}
	for _, bad := range []string{"ambassador_sessions_total{reason=local_exhausted}", "ambassador_accept_pauses_total"} {
		if n, err := sample(a.process, bad); err != nil || n != 0 {
			t.Errorf("%s is %v, %v", bad, n, err)
		}
	}
	a.await("too many connections")
}

// TestFloodOfTheCA proves that idle clients do not block the CA.
func TestFloodOfTheCA(t *testing.T) {
	t.Parallel()
	a := startWithDescriptors(t, 64, "ca", "--listen", "127.0.0.1:0")
	addr := a.addr("ca")
	for i := range 200 {
		c, err := dialTCP(addr)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
	}
	if err := getFrom("127.0.0.1", "https://"+addr+"/roots.pem"); err != nil {
		t.Error(err)
	}
	if n := openDescriptors(t, a); n > 40 {
		t.Errorf("%d descriptors are open", n)
	}
}

// TestFloodOfTheDemo proves the same of the demo's service.
func TestFloodOfTheDemo(t *testing.T) {
	t.Parallel()
	a := startWithDescriptors(t, 128, "demo")
	m, err := a.stdout.awaitAfter(0, regexp.MustCompile(`A service at (\S+) echoes`), patience, a.exited)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		c, err := dialTCP(m[1])
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
	}
	if n := openDescriptors(t, a); n > 100 {
		t.Errorf("%d descriptors are open", n)
	}
	c := a.connect("forward")
	fmt.Fprintln(c, "hi")
	if got, err := bufio.NewReader(c).ReadString('\n'); got != "hello demo-client: hi\n" {
		t.Errorf("the answer is %q, %v", got, err)
	}
}
