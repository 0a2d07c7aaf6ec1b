package integration

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// The SOCKS5 replies in the tests (RFC 1928, section 6).
const (
	socksOK             = 0
	socksFailed         = 1
	socksNotAllowed     = 2
	socksHostUnknown    = 4
	socksRefused        = 5
	socksTimedOut       = 6
	socksUnknownCommand = 7
)

// socksAddress encodes a destination for SOCKS5: "HOST:PORT", or "=NAME:PORT" to send
// any text as a name.
func socksAddress(to string) ([]byte, error) {
	i := strings.LastIndexByte(to, ':')
	port, err := strconv.ParseUint(to[i+1:], 10, 16)
	if err != nil {
		return nil, err
	}
	var b []byte
	name, isName := strings.CutPrefix(to[:i], "=")
	addr, err := netip.ParseAddr(strings.Trim(name, "[]"))
	switch {
	case isName || err != nil:
		b = append([]byte{3, byte(len(name))}, name...)
	case addr.Is4():
		b = append([]byte{1}, addr.AsSlice()...)
	default:
		b = append([]byte{4}, addr.AsSlice()...)
	}
	return append(b, byte(port>>8), byte(port)), nil
}

// socksAsk asks over a connection to a SOCKS5 proxy, as a client does that writes
// each part when the one before is answered. Login is "USER:PASSWORD", or empty.
// The reply is only told without an error.
func socksAsk(c net.Conn, login, to string) (reply byte, err error) {
	address, err := socksAddress(to)
	if err != nil {
		return 0, err
	}
	method := byte(0)
	if login != "" {
		method = 2
	}
	b := make([]byte, 4)
	c.Write([]byte{5, 1, method}) // an error shows when the answer is read
	if _, err := io.ReadFull(c, b[:2]); err != nil || b[1] != method {
		return 0, fmt.Errorf("the proxy chose method %#x: %w", b[1], err)
	}
	if login != "" {
		user, password, _ := strings.Cut(login, ":")
		fmt.Fprintf(c, "\x01%c%s%c%s", len(user), user, len(password), password)
		if _, err := io.ReadFull(c, b[:2]); err != nil || b[1] != 0 {
			return 0, fmt.Errorf("the proxy answers %q to the login: %w", b[:2], err)
		}
	}
	c.Write(append([]byte{5, 1, 0}, address...))
	if _, err := io.ReadFull(c, b); err != nil {
		return 0, err
	}
	size := int64(4 + 2)
	if b[3] == 4 {
		size = 16 + 2
	}
	_, err = io.CopyN(io.Discard, c, size)
	return b[1], err
}

// socks connects to the proxy on a listener of the ambassador and asks it for a
// destination.
func (a *ambassador) socks(listener, login, to string) (net.Conn, byte) {
	a.t.Helper()
	c := a.connect(listener)
	reply, err := socksAsk(c, login, to)
	if err != nil {
		a.t.Fatalf("asking for %s: %v; the log:\n%s", to, err, tail(a.stderr.String(), 8<<10))
	}
	return c, reply
}

// reaches checks that a destination whose server echoes lines is reached.
func (a *ambassador) reaches(listener, login, to string) net.Conn {
	a.t.Helper()
	c, reply := a.socks(listener, login, to)
	if reply != socksOK {
		rec, _ := logged(a.process, peerOf(a.process, c))
		a.t.Fatalf("reply %d for %s: %+v", reply, to, rec)
	}
	line(a.t, c, "hello "+to)
	return c
}

// refusal asks for a destination, checks the reply, and gives the session's record.
func (a *ambassador) refusal(listener, login, to string, reply byte, reason string) record {
	a.t.Helper()
	c, got := a.socks(listener, login, to)
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		a.t.Errorf("%s: after the reply %d bytes, %v; want a FIN", to, n, err)
	}
	c.Close()
	rec, err := logged(a.process, peerOf(a.process, c))
	if err != nil {
		a.t.Fatal(err)
	}
	if got != reply || rec.Reason != reason {
		a.t.Errorf("%s: reply %d, reason %s (%s), want %d, %s", to, got, rec.Reason, rec.Cause, reply, reason)
	}
	return rec
}

// usersFile is the file of users who log in with "USER:PASSWORD".
func usersFile(t testing.TB, logins ...string) string {
	t.Helper()
	var text strings.Builder
	for _, login := range logins {
		user, password, _ := strings.Cut(login, ":")
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "%s:%s\n", user, hash)
	}
	return writeFile(t, "users.htpasswd", text.String())
}

// hostPort is the port of an address.
func hostPort(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// webServer answers every request with its path.
func webServer(t testing.TB) (url, port string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "you asked for", r.URL.Path) }))
	t.Cleanup(s.Close)
	port = hostPort(s.Listener.Addr().String())
	return "http://localhost:" + port, port
}

// proxied is curl through a proxy.
func proxied(url string, args ...string) *exec.Cmd {
	cmd := curl(url, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "no_proxy=") // curl's own has a * in it
	return cmd
}

// TestSOCKS5Command proves that the proxy works without a file: allowed destinations
// are reached by name, with a login if users are configured; others are refused; and
// --report lists at the end what would have been refused.
func TestSOCKS5Command(t *testing.T) {
	t.Parallel()
	need(t, "curl")
	url, port := webServer(t)
	a := start(t, "socks5", "--listen", "127.0.0.1:0", "--allow", "localhost:"+port)
	addr := a.addr("socks5")
	if got := run(t, proxied(url+"/a", "--socks5-hostname", addr)); got != "you asked for /a" {
		t.Errorf("curl got %q", got)
	}
	a.refusal("socks5", "", "example.com:443", socksNotAllowed, "denied")
	a.refusal("socks5", "", "localhost:1", socksNotAllowed, "denied")
	a.refusal("socks5", "", "127.0.0.1:"+port, socksNotAllowed, "denied")
	a.refusal("socks5", "", "localhost:"+hostPort(addr), socksNotAllowed, "denied")
	if _, stderr, err := try(proxied(url+"/a", "--socks4", addr)); err == nil {
		t.Errorf("SOCKS4 works: %s", stderr)
	}
	a.await(`"reason":"bad_greeting","cause":"[^"]*SOCKS4[^"]*let it speak SOCKS5`)

	b := start(t, "socks5", "--listen", "127.0.0.1:0", "--allow", "localhost:"+port, "--users", usersFile(t, "batch:secret"))
	addr = b.addr("socks5")
	if got := run(t, proxied(url+"/b", "--socks5-hostname", addr, "--proxy-user", "batch:secret")); got != "you asked for /b" {
		t.Errorf("curl got %q", got)
	}
	b.await(`"user":"batch".*"reason":"closed"`)
	for _, login := range [][]string{{"--proxy-user", "batch:wrong"}, {"--proxy-user", "nobody:secret"}, nil} {
		from := b.stderr.len()
		if text, _, err := try(proxied(url+"/b", append(login, "--socks5-hostname", addr)...)); err == nil {
			t.Errorf("%q got %q", login, text)
		}
		b.awaitAfter(from, `"stage":"greet","reason":"auth_failed"`)
	}

	c := start(t, "socks5", "--listen", "127.0.0.1:0", "--report")
	c.refusal("socks5", "", "localhost:"+port, socksNotAllowed, "special_address")
	c.signal(os.Interrupt)
	c.ended(0)
	if got, want := c.stdout.String(), "# --allow 'localhost:"+port+"'  # loopback address; 1 session, 1 special_address\n"; !strings.Contains(got, want) {
		t.Errorf("at the end it printed %q, want %q in it", got, want)
	}
}

// TestRefusalIsFast proves that a destination that no rule allows is refused at once,
// without a lookup. It runs beside no other test.
func TestRefusalIsFast(t *testing.T) {
	z := startZone(t, func(question) answer { return answer{addrs: []string{"192.0.2.1"}} })
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
dns: {servers: ["%s"]}
upstreams:
  internet: {dynamic: true}
listeners:
  socks:
    listen: "127.0.0.1:0"
    socks5: {}
    rules:
      - {host: api.ambassador.test, port: 443, upstream: internet}
      - {ip: [10.0.0.0/8], port: 5432, upstream: internet}
      - {host: "*.wild.test", upstream: internet}
`, z.addr)))
	addr := a.addr("socks")
	var took []time.Duration
	for i := range 300 {
		start := time.Now()
		c, err := dialTCP(addr)
		if err != nil {
			t.Fatal(err)
		}
		reply, err := socksAsk(c, "", fmt.Sprintf("name%d.ambassador.test:443", i))
		took = append(took, time.Since(start))
		c.Close()
		if err != nil || reply != socksNotAllowed {
			t.Fatalf("reply %d, %v, want %d", reply, err, socksNotAllowed)
		}
	}
	slices.Sort(took)
	limit := 2 * time.Millisecond
	if on("AMBASSADOR_TEST_RACE") {
		limit *= 5
	}
	t.Logf("a refusal takes %v at the median, %v at 99 %%", quantile(took, 0.5), quantile(took, 0.99))
	if m := quantile(took, 0.5); m > limit {
		t.Errorf("the median is %v, want less than %v", m, limit)
	}
	if n := z.asked(""); n != 0 {
		t.Errorf("%d questions were asked about names that no rule allows", n)
	}
}

// TestUserRules proves that rules match the client's user ID, on unix sockets and by TCP.
func TestUserRules(t *testing.T) {
	t.Parallel()
	need(t, "curl")
	url, port := webServer(t)
	dir := shortDir(t)
	config := `
upstreams:
  internet: {dynamic: true}
listeners:
  ours: {listen: "unix:%[1]s/ours", socks5: {}, rules: [{uid: %[2]d, host: localhost, port: %[3]s, upstream: internet}]}
  theirs: {listen: "unix:%[1]s/theirs", socks5: {}, rules: [{uid: %[4]d, host: localhost, upstream: internet}]}
  tcp: {listen: "127.0.0.1:0", socks5: {}, rules: [{uid: %[2]d, host: localhost, port: %[3]s, upstream: internet}], log: {process: true}}
  notus: {listen: "127.0.0.1:0", socks5: {}, rules: [{uid: %[2]d, deny: not you}, {host: localhost, upstream: internet}]}
`
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(config, dir, os.Getuid(), port, os.Getuid()+1)))
	a.addr("theirs")
	if got := run(t, proxied(url+"/u", "--proxy", "socks5h://localhost"+dir+"/ours")); got != "you asked for /u" {
		t.Errorf("curl got %q", got)
	}
	if text, _, err := try(proxied(url+"/u", "--proxy", "socks5h://localhost"+dir+"/theirs")); err == nil {
		t.Errorf("another user's rule lets us in: %q", text)
	}
	a.await(`"listener":"theirs".*"reason":"no_route"`)
	if got := run(t, proxied(url+"/u", "--proxy", "socks5h://"+a.addr("tcp"))); got != "you asked for /u" {
		t.Errorf("curl by TCP got %q", got)
	}
	a.await(fmt.Sprintf(`"listener":"tcp".*"uid":%d,.*"reason":"closed"`, os.Getuid()))
	if text, _, err := try(proxied(url+"/u", "--proxy", "socks5h://"+a.addr("notus"))); err == nil {
		t.Errorf("a rule that denies us lets us in by TCP: %q", text)
	}
	a.await(fmt.Sprintf(`"listener":"notus".*"uid":%d,.*"reason":"denied"`, os.Getuid()))
}
