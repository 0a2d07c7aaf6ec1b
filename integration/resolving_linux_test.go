package integration

import (
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// withResolvConf puts the rest of the test into a network namespace of its own, in which
// /etc/resolv.conf has the given lines.
func withResolvConf(t testing.TB, lines ...string) {
	t.Helper()
	inNamespace(t)
	if err := replaceFile("/etc/resolv.conf", writeFile(t, "resolv.conf", strings.Join(lines, "\n")+"\n")); err != nil {
		missing(t, fmt.Sprintf("leave to mount files (%v)", err))
	}
}

// TestAbsoluteNames proves that the root's dot of a requested name is kept: with a search
// domain and ndots:5, as in every Kubernetes pod, the name without the dot is another
// host. The dot is in the record, and rules match the name with and without it.
func TestAbsoluteNames(t *testing.T) {
	t.Parallel()
	withResolvConf(t, "search evil.test", "nameserver 127.0.0.1", "options ndots:5")
	good := serverAt(t, publicIPv4+":7000", echoLines)
	evil := serverAt(t, privateIPv4+":7000", echoLines)
	z := startZoneAt(t, "127.0.0.1:53", func(q question) answer {
		switch q.name {
		case "db.example":
			return answer{addrs: []string{publicIPv4}}
		case "db.example.evil.test":
			return answer{addrs: []string{privateIPv4}}
		}
		return answer{unknown: true}
	})
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", `
upstreams:
  internet: {dynamic: true}
  fixed: {endpoints: ["db.example.:7000"]}
listeners:
  byhost: {listen: "127.0.0.1:0", socks5: {}, rules: [{host: db.example, upstream: internet}]}
  dotted: {listen: "127.0.0.1:0", socks5: {}, rules: [{host: db.example., upstream: internet}]}
  byip: {listen: "127.0.0.1:0", socks5: {}, rules: [{ip: [0.0.0.0/0, 10.0.0.0/8], upstream: internet}]}
  connect: {listen: "127.0.0.1:0", http_connect: {}, rules: [{host: db.example, upstream: internet}]}
  fixed: {listen: "127.0.0.1:0", upstream: fixed}
`))
	for _, listener := range []string{"byhost", "dotted", "byip"} {
		c := a.reaches(listener, "", "db.example.:7000")
		c.Close()
		if rec := a.endsAs(c, "relay", "closed"); rec.Destination != "db.example.:7000" || rec.Address != publicIPv4+":7000" {
			t.Errorf("%s: destination %s, address %s", listener, rec.Destination, rec.Address)
		}
	}
	c := a.connect("connect")
	fmt.Fprint(c, "CONNECT db.example.:7000 HTTP/1.1\r\nHost: db.example.:7000\r\n\r\n")
	for _, want := range []string{"HTTP/1.1 200 OK\r\n", "\r\n"} {
		if got := readLine(t, c); got != want {
			t.Fatalf("CONNECT: %q, want %q", got, want)
		}
	}
	line(t, c, "by CONNECT")
	line(t, a.connect("fixed"), "by an endpoint")
	if err := good.received("by CONNECT", patience); err != nil {
		t.Error(err)
	}
	if err := good.received("by an endpoint", patience); err != nil {
		t.Error(err)
	}
	if seen := evil.reports(); seen != "" {
		t.Errorf("another host was reached: %s", seen)
	}
	if n := z.asked("db.example.evil.test"); n != 0 {
		t.Errorf("the search domain was appended %d times", n)
	}
	a.reaches("byhost", "", "db.example:7000") // as getaddrinfo does
	if evil.reports() == "" {
		t.Error("no search domain is appended to a name without the dot") // then the test has proved nothing
	}
}

// publicIPv6 is an ordinary address for a test's own namespace.
const publicIPv6 = "2600:1234::1"

// TestTwoFamiliesByTwoRules proves that one rule for each address family, as the error
// text of --allow advises, allows a name's addresses of both: whichever family answers,
// and in either order of the rules.
func TestTwoFamiliesByTwoRules(t *testing.T) {
	t.Parallel()
	withResolvConf(t, "nameserver 127.0.0.1")
	ipRun(t, "-6", "addr", "add", publicIPv6+"/128", "dev", "lo", "nodad")
	serverAt(t, "["+publicIPv6+"]:7006", echoLines)
	serverAt(t, publicIPv4+":7004", echoLines)
	startZoneAt(t, "127.0.0.1:53", func(q question) answer { return answer{addrs: []string{publicIPv4, publicIPv6}} })
	for _, order := range [][]string{{"0.0.0.0/0:*", "[::]/0:*"}, {"[::]/0:*", "0.0.0.0/0:*"}} {
		a := start(t, "socks5", "--listen", "127.0.0.1:0", "--allow", order[0], "--allow", order[1])
		a.reaches("socks5", "", "both.example:7006")
		a.reaches("socks5", "", "both.example:7004")
	}
}

// TestOneFamilyNeverAnswers proves that the addresses of one family are not lost when the
// query for the other is never answered, and that addresses which come late are tried
// when those that came first have failed: for a client's destination, for one that rules
// had to look up, and for an endpoint.
func TestOneFamilyNeverAnswers(t *testing.T) {
	t.Parallel()
	withResolvConf(t, "nameserver 127.0.0.1")
	ipRun(t, "-6", "addr", "add", publicIPv6+"/128", "dev", "lo", "nodad")
	serverAt(t, publicIPv4+":7004", echoLines)
	serverAt(t, "["+publicIPv6+"]:7006", echoLines)
	startZoneAt(t, "127.0.0.1:53", func(q question) answer {
		switch {
		case q.name == "half4.test" && q.v6, q.name == "half6.test" && !q.v6:
			return answer{silent: true}
		case q.name == "late6.test" && q.v6, q.name == "late4.test" && !q.v6:
			return answer{addrs: []string{publicIPv4, publicIPv6}, delay: 500 * time.Millisecond}
		}
		return answer{addrs: []string{publicIPv4, publicIPv6}}
	})
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", `
upstreams:
  internet: {dynamic: true}
  half4: {endpoints: ["half4.test:7004"]}
  half6: {endpoints: ["half6.test:7006"]}
  late6: {endpoints: ["late6.test:7006"]}
  late4: {endpoints: ["late4.test:7004"], health: {interval: 0s}}
listeners:
  any: {listen: "127.0.0.1:0", socks5: {}, rules: [{upstream: internet}]}
  ruled: {listen: "127.0.0.1:0", socks5: {}, rules: [{ip: [0.0.0.0/0], upstream: internet}, {ip: ["::/0"], upstream: internet}]}
  six: {listen: "127.0.0.1:0", socks5: {}, rules: [{ip: ["::/0"], upstream: internet}]}
  half4: {listen: "127.0.0.1:0", upstream: half4}
  half6: {listen: "127.0.0.1:0", upstream: half6}
  late6: {listen: "127.0.0.1:0", upstream: late6}
  late4: {listen: "127.0.0.1:0", upstream: late4}
`))
	for _, to := range []string{"half4.test:7004", "half6.test:7006", "late6.test:7006", "late4.test:7004"} {
		for _, listener := range []string{"any", "ruled"} {
			began := time.Now()
			a.reaches(listener, "", to)
			t.Logf("%s by %s: %v", to, listener, time.Since(began))
		}
	}
	a.reaches("six", "", "late6.test:7006") // no rule allows the address that came first
	a.refusal("six", "", "half4.test:7004", socksNotAllowed, "no_route")
	for _, listener := range []string{"half4", "half6"} {
		line(t, a.connect(listener), "to "+listener)
	}
	for _, listener := range []string{"late6", "late4"} { // the address of the second family is found in the background
		reachesWithin(t, a, listener, 10*time.Second)
	}
}

// reachesWithin connects until a server behind the listener echoes a line.
func reachesWithin(t testing.TB, a *ambassador, listener string, within time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	for time.Since(began) < within {
		c, err := dialTCP(a.addr(listener))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(began.Add(within))
		fmt.Fprintln(c, "hello")
		b := make([]byte, 6)
		_, err = io.ReadFull(c, b)
		c.Close()
		if err == nil {
			return time.Since(began)
		}
	}
	t.Errorf("%s: nothing was reached within %v", listener, within)
	return 0
}

// TestTwoOfThreeNameServersAreDead proves that the third name server of resolv.conf is
// asked in time. The C library has its answer after 8 s.
func TestTwoOfThreeNameServersAreDead(t *testing.T) {
	t.Parallel()
	withResolvConf(t, "nameserver 127.0.0.2", "nameserver 127.0.0.3", "nameserver 127.0.0.1")
	serverAt(t, publicIPv4+":7000", echoLines)
	silent := func(question) answer { return answer{silent: true} }
	startZoneAt(t, "127.0.0.2:53", silent)
	startZoneAt(t, "127.0.0.3:53", silent)
	startZoneAt(t, "127.0.0.1:53", func(question) answer { return answer{addrs: []string{publicIPv4}} })
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", `
upstreams:
  internet: {dynamic: true}
  fixed: {endpoints: ["db.test:7000"]}
listeners:
  any: {listen: "127.0.0.1:0", socks5: {}, rules: [{upstream: internet}]}
  fixed: {listen: "127.0.0.1:0", upstream: fixed}
`))
	a.reaches("any", "", "db.test:7000")
	line(t, a.connect("fixed"), "to an endpoint")
}

// TestMovedBackend proves that a name is looked up again soon after none of its addresses
// can be reached, with health checks and without.
func TestMovedBackend(t *testing.T) {
	t.Parallel()
	withResolvConf(t, "nameserver 127.0.0.1")
	var at atomic.Value
	at.Store(publicIPv4)
	startZoneAt(t, "127.0.0.1:53", func(question) answer { return answer{addrs: []string{at.Load().(string)}} })
	old := serverAt(t, publicIPv4+":7000", echoLines)
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", `
upstreams:
  probed: {endpoints: ["db.test:7000"]}
  plain: {endpoints: ["db.test:7000"], health: {interval: 0s}}
listeners:
  probed: {listen: "127.0.0.1:0", upstream: probed}
  plain: {listen: "127.0.0.1:0", upstream: plain}
`))
	for _, listener := range []string{"probed", "plain"} {
		reachesWithin(t, a, listener, patience)
	}
	old.close()
	at.Store(privateIPv4)
	serverAt(t, privateIPv4+":7000", echoLines)
	for _, listener := range []string{"probed", "plain"} {
		t.Logf("%s: the moved backend was found after %v", listener, reachesWithin(t, a, listener, 10*time.Second))
	}
}

// TestGoneName proves that the addresses of a name that does not exist any more are
// dropped after keep_gone, which log and status tell: they may be a stranger's by then.
func TestGoneName(t *testing.T) {
	t.Parallel()
	withResolvConf(t, "nameserver 127.0.0.1")
	var gone atomic.Bool
	startZoneAt(t, "127.0.0.1:53", func(question) answer { return answer{addrs: []string{publicIPv4}, unknown: gone.Load()} })
	serverAt(t, publicIPv4+":7000", echoLines)
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", `
upstreams:
  fixed: {endpoints: ["db.test:7000"], resolve: {every: 1s, keep_gone: 3s}}
listeners:
  fixed: {listen: "127.0.0.1:0", upstream: fixed}
`))
	line(t, a.connect("fixed"), "before")
	gone.Store(true)
	a.await(`"msg":"name does not resolve".*"addresses_kept":1`)
	line(t, a.connect("fixed"), "while it is kept")
	if text, _ := a.ask("status"); !strings.Contains(text, "will be dropped") {
		t.Errorf("status: %s", text)
	}
	a.await(`"msg":"name does not exist any more: addresses dropped".*"dropped":"` + publicIPv4 + `:7000"`)
	a.endsAs(a.connect("fixed"), "dial", "dns")
	if text, _ := a.ask("status"); !strings.Contains(text, "no such host") {
		t.Errorf("status: %s", text)
	}
	gone.Store(false)
	reachesWithin(t, a, "fixed", patience)
}

// TestNamesThatGoRefuses proves that names are dialled that the C library looks up, and
// Go's resolver refuses: labels that end in a dash, and an endpoint in Unicode.
func TestNamesThatGoRefuses(t *testing.T) {
	t.Parallel()
	withResolvConf(t, "search search.test", "nameserver 127.0.0.1")
	serverAt(t, publicIPv4+":7000", echoLines)
	startZoneAt(t, "127.0.0.1:53", func(q question) answer {
		return answer{addrs: []string{publicIPv4}, unknown: q.name != "a-.b-.test" && q.name != "short-.search.test" && q.name != "xn--bcher-kva.test"}
	})
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", `
upstreams:
  internet: {dynamic: true}
  fixed: {endpoints: ["a-.b-.test:7000"]}
  unicode: {endpoints: ["bücher.test:7000"]}
listeners:
  unicode: {listen: "127.0.0.1:0", upstream: unicode}
  any: {listen: "127.0.0.1:0", socks5: {}, rules: [{host: ["*.b-.test", short-], upstream: internet}]}
  fixed: {listen: "127.0.0.1:0", upstream: fixed}
`))
	a.reaches("any", "", "a-.b-.test:7000")
	a.reaches("any", "", "short-:7000")
	line(t, a.connect("fixed"), "to an endpoint")
	line(t, a.connect("unicode"), "to an endpoint in Unicode")
	if rec := a.refusal("any", "", "gone-.b-.test:7000", socksHostUnknown, "dns"); !strings.Contains(rec.Cause, "gone-.b-.test") {
		t.Errorf("cause %q", rec.Cause)
	}
}
