package integration

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The addresses of the loopback interface in a test's own network namespace.
const (
	privateIPv4 = "10.213.7.1"
	privateIPv6 = "fd00:213::1"
	publicIPv4  = "198.41.0.4" // which elsewhere is a root name server's
)

// inNamespace puts the rest of the test into a network namespace of its own, whose
// loopback interface has a private and a public address too. In it is what the
// test's own goroutine opens, and every process that it starts; subtests are not.
func inNamespace(t testing.TB) {
	t.Helper()
	need(t, "ip")
	if os.Getuid() != 0 {
		missing(t, "root, which network namespaces need")
	}
	runtime.LockOSThread() // and never unlocks: the thread ends with the test
	if err := newNamespace(); err != nil {
		missing(t, fmt.Sprintf("leave to make network namespaces (%v)", err))
	}
	for _, args := range []string{"link set lo up", "addr add " + privateIPv4 + "/32 dev lo", "addr add " + publicIPv4 + "/32 dev lo",
		"-6 addr add " + privateIPv6 + "/128 dev lo nodad"} {
		ipRun(t, strings.Fields(args)...)
	}
}

// nft sets the rules of the test's namespace.
func nft(t testing.TB, rules string) {
	t.Helper()
	cmd := exec.Command(sbin(t, "nft"), "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v %s", err, text)
	}
}

// serverAt is a plaintext server at an address, until the end of the test.
func serverAt(t testing.TB, addr string, handler func(*server, duplex)) *server {
	t.Helper()
	return secureAt(t, addr, nil, handler)
}

func secureAt(t testing.TB, addr string, cfg *tls.Config, handler func(*server, duplex)) *server {
	t.Helper()
	s, err := serveAt(addr, cfg, handler)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

// reports is what the handlers have reported so far.
func (s *server) reports() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.seen, "\n")
}

// dialHere connects in the test's own namespace, over IPv4 or IPv6.
func dialHere(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr) // a literal address is dialled by the goroutine that asks
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * patience))
	return c
}

// TestRedirect proves that programs without proxy support reach their destination:
// redirected by nftables, over IPv4 and IPv6, by address and by the name in their
// ClientHello; that our own connections are excluded by their mark or by the user;
// that a server may speak first; and that a connection to the listener itself is
// refused.
func TestRedirect(t *testing.T) {
	t.Parallel()
	needNetcat(t)
	inNamespace(t)
	keys := newPKI(t)
	plain := serverAt(t, privateIPv4+":7000", echoLines)
	serverAt(t, "["+privateIPv6+"]:7000", echoLines)
	first := serverAt(t, privateIPv4+":7001", speaksFirst("welcome\n"))
	cfg, err := keys.server("server", "")
	if err != nil {
		t.Fatal(err)
	}
	secureAt(t, privateIPv4+":7443", cfg, echoLines)
	serverAt(t, privateIPv4+":7002", echoLines)
	nobody := unprivileged(t)
	nft(t, fmt.Sprintf(`
table inet ambassador {
  chain output {
    type nat hook output priority -100; policy accept;
    meta mark 0xa3 return
    tcp dport { 7000, 7001, 7443 } redirect to :15001
    meta skuid %d tcp dport 7002 redirect to :15001
  }
}`, nobody.Uid))
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", `
upstreams:
  marked: {dynamic: true, mark: 0xa3}
  unmarked: {dynamic: true}
listeners:
  redirected:
    listen: 127.0.0.1:15001
    original_destination: true
    sni: true
    timeouts: {handshake: 1s}
    rules: &rules
      - {name: named, sni: ["*.ambassador.test", localhost], ip: [10.213.7.0/24], port: 7443, upstream: marked}
      - {deny: "no name that is allowed", port: 7443}
      - {name: unmarked, ip: [10.213.7.0/24], port: 7002, upstream: unmarked}
      - {name: address, ip: [10.213.7.0/24, "fd00:213::/32", 127.0.0.0/8, "::1/128"], upstream: marked}
  redirected6: {listen: "[::1]:15001", original_destination: true, sni: true, rules: *rules}
`))
	a.addr("redirected")
	a.addr("redirected6")

	c := dialHere(t, privateIPv4+":7000")
	line(t, c, "over IPv4")
	c.Close()
	if rec := a.endsAs(c, "relay", "closed"); rec.Destination != privateIPv4+":7000" || rec.Rule != "address" || rec.Upstream != "marked" {
		t.Errorf("%+v", rec)
	}
	if err := plain.received("over IPv4", patience); err != nil {
		t.Error(err)
	}
	six := dialHere(t, "["+privateIPv6+"]:7000")
	line(t, six, "over IPv6")
	six.Close()
	if rec := a.endsAs(six, "relay", "closed"); rec.Destination != "["+privateIPv6+"]:7000" {
		t.Errorf("%+v", rec)
	}

	named := dialHere(t, privateIPv4+":7443")
	secure := tls.Client(named, keys.caller(t, ""))
	line(t, secure, "by name")
	secure.CloseWrite()
	io.Copy(io.Discard, secure) // or the close would be a reset
	named.Close()
	if rec := a.endsAs(named, "relay", "closed"); rec.Rule != "named" || rec.SNI != "localhost" {
		t.Errorf("%+v", rec)
	}
	other := dialHere(t, privateIPv4+":7443")
	if err := tls.Client(other, &tls.Config{ServerName: "elsewhere.test", InsecureSkipVerify: true}).Handshake(); err == nil {
		t.Error("a name that is not allowed came through")
	}
	if rec := a.endsAs(other, "route", "denied"); rec.SNI != "elsewhere.test" {
		t.Errorf("%+v", rec)
	}

	// The server speaks first: the wait for a ClientHello ends.
	began := time.Now()
	silent := dialHere(t, privateIPv4+":7001")
	if got := readLine(t, silent); got != "welcome\n" {
		t.Errorf("the server's first words are %q", got)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("they came after %v, and timeouts.handshake is 1s", took)
	}
	silent.Close()
	// Bytes that may be the beginning of a ClientHello are kept, also if they are not.
	begun := dialHere(t, privateIPv4+":7001")
	fmt.Fprint(begun, "\x16\x03\x01")
	readLine(t, begun)
	fmt.Fprint(begun, " is kept\n")
	if got := readLine(t, begun); got != "\x16\x03\x01 is kept\n" {
		t.Errorf("the server got %q", got)
	}
	if err := first.received("is kept", patience); err != nil {
		t.Error(err)
	}

	// By the user: our connections are not redirected, although they have no mark.
	cmd := exec.Command("nc", "-N", privateIPv4, "7002")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: nobody}
	cmd.Stdin = strings.NewReader("as nobody\n")
	if got := run(t, cmd); got != "as nobody" {
		t.Errorf("the redirected user got %q", got)
	}
	a.await(`"rule":"unmarked".*"destination":"` + privateIPv4 + `:7002".*"reason":"closed"`)

	for _, addr := range []string{"127.0.0.1:15001", "[::1]:15001"} {
		direct := dialHere(t, addr)
		fmt.Fprintln(direct, "hello")
		resetByPeer(t, direct)
		a.endsAs(direct, "route", "loop")
	}
}

// readLine reads up to the end of a line, and no further.
func readLine(t testing.TB, c net.Conn) string {
	t.Helper()
	var text []byte
	for b := make([]byte, 1); ; text = append(text, b...) {
		if _, err := c.Read(b); err != nil {
			t.Fatalf("%q, and then %v", text, err)
		}
		if b[0] == '\n' {
			return string(append(text, b...))
		}
	}
}
