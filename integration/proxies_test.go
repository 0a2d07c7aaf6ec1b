package integration

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// newHAProxy starts an HAProxy with the sections of a configuration.
func newHAProxy(t testing.TB, sections func(d *daemon) string) *daemon {
	t.Helper()
	program := sbin(t, "haproxy")
	d := newDaemon(t)
	conf := d.write(t, "haproxy.cfg", "global\n  maxconn 200\ndefaults\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n"+sections(d))
	d.command = func() *exec.Cmd { return exec.Command(program, "-db", "-f", conf) }
	d.start(t)
	return d
}

// nginxStream is where Debian has the module that proxies TCP.
const nginxStream = "/usr/lib/nginx/modules/ngx_stream_module.so"

// newNginx starts an nginx with the blocks of a configuration.
func newNginx(t testing.TB, blocks func(d *daemon) string) *daemon {
	t.Helper()
	program := sbin(t, "nginx")
	if _, err := os.Stat(nginxStream); err != nil {
		missing(t, nginxStream)
	}
	d := newDaemon(t)
	conf := d.write(t, "nginx.conf", fmt.Sprintf("load_module %s;\ndaemon off;\nmaster_process off;\npid %s;\nerror_log stderr;\nevents {}\n%s",
		nginxStream, d.file("pid"), blocks(d)))
	d.command = func() *exec.Cmd { return exec.Command(program, "-p", d.dir, "-e", "stderr", "-c", conf) }
	d.start(t)
	return d
}

// The servers behind us answer with the client's address from their PROXY header. They
// refuse connections without one.
func haproxyBehind(t testing.TB) *daemon {
	return newHAProxy(t, func(d *daemon) string {
		return "frontend f\n  mode http\n  bind " + d.addr() + " accept-proxy\n" +
			"  http-request return status 200 content-type text/plain lf-string \"client %[src]:%[src_port]\\n\"\n"
	})
}

func nginxBehind(t testing.TB) *daemon {
	return newNginx(t, func(d *daemon) string {
		return "http { access_log off; server { listen " + d.addr() + " proxy_protocol; location / { return 200 \"client $proxy_protocol_addr:$proxy_protocol_port\\n\"; } } }\n"
	})
}

// The proxies before us pass TCP on, with a PROXY header.
func haproxyBefore(send string) func(testing.TB, string) *daemon {
	return func(t testing.TB, to string) *daemon {
		return newHAProxy(t, func(d *daemon) string {
			return "listen l\n  mode tcp\n  bind " + d.addr() + "\n  server us " + to + " " + send + "\n"
		})
	}
}

func nginxBefore(t testing.TB, to string) *daemon {
	return newNginx(t, func(d *daemon) string {
		return "stream { server { listen " + d.addr() + "; proxy_pass " + to + "; proxy_protocol on; } }\n"
	})
}

// askWho asks an HTTP server for the client's address over c.
func askWho(c net.Conn) (string, error) {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	for s := bufio.NewScanner(c); ; {
		if !s.Scan() {
			return "", fmt.Errorf("no client in the answer: %v", s.Err())
		}
		if client, ok := strings.CutPrefix(s.Text(), "client "); ok {
			return client, nil
		}
	}
}

// TestProxyProtocol proves that HAProxy and nginx, before us and behind us, agree with
// us on the client's address.
func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	servers := map[string]*daemon{"haproxy": haproxyBehind(t), "nginx": nginxBehind(t)}
	var upstreams, listeners strings.Builder
	for name, d := range servers {
		for _, v := range []string{"v1", "v2"} {
			fmt.Fprintf(&upstreams, "  %s_%s: {endpoints: [%q], proxy_protocol: %s}\n", name, v, d.addr(), v)
			fmt.Fprintf(&listeners, "  %s_%s: {listen: \"127.0.0.1:0\", upstream: %[1]s_%[2]s}\n", name, v)
			fmt.Fprintf(&listeners, "  %s_%s_behind: {listen: \"127.0.0.1:0\", upstream: %[1]s_%[2]s, proxy_protocol: {from: [127.0.0.0/8]}}\n", name, v)
		}
	}
	fmt.Fprintf(&listeners, "  elsewhere: {listen: \"127.0.0.1:0\", upstream: nginx_v1, proxy_protocol: {from: [10.0.0.0/8]}}\n")
	a := start(t, "run", "-c", writeFile(t, "a.yaml", "upstreams:\n"+upstreams.String()+"listeners:\n"+listeners.String()))
	if _, code := a.ask("wait"); code != 0 { // by probes, which are LOCAL
		t.Fatal("not ready")
	}
	for name := range servers {
		for _, v := range []string{"v1", "v2"} {
			listener := name + "_" + v
			t.Run("alone before "+listener, func(t *testing.T) { who(t, a, a.addr(listener)) })
			for before, start := range map[string]func(testing.TB, string) *daemon{
				"haproxy v1": haproxyBefore("send-proxy"), "haproxy v2": haproxyBefore("send-proxy-v2"), "nginx": nginxBefore,
			} {
				t.Run("between "+before+" and "+listener, func(t *testing.T) { who(t, a, start(t, a.addr(listener+"_behind")).addr()) })
			}
		}
	}
	t.Run("a proxy that is not expected", func(t *testing.T) {
		c := a.connect("elsewhere")
		resetByPeer(t, c) // at once, whatever its header would say
		a.endsAs(c, "greet", "denied")
	})
	t.Run("no proxy", func(t *testing.T) {
		c := a.connect("nginx_v1_behind")
		io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
		resetByPeer(t, c)
		a.endsAs(c, "greet", "bad_greeting")
	})
}

// who connects through addr, and expects its own address at the server and at the
// ambassador.
func who(t *testing.T, a *ambassador, addr string) {
	t.Helper()
	c, err := dialTCP(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	client, err := askWho(c)
	if err != nil || client != c.LocalAddr().String() {
		t.Errorf("the server sees %s, %v; we are %s", client, err, c.LocalAddr())
	}
	io.Copy(io.Discard, c)
	c.Close()
	a.endsAs(c, "relay", "closed")
}

// TestProxyChecks proves that HAProxy's own checks, which are LOCAL and end in a reset,
// are probes, and that the log can do without them.
func TestProxyChecks(t *testing.T) {
	t.Parallel()
	up := startServer(t, nil, echo)
	a := start(t, "run", "-c", writeFile(t, "a.yaml", fmt.Sprintf(`
upstreams: {up: {endpoints: [%q]}}
listeners:
  front: {listen: "127.0.0.1:0", upstream: up, proxy_protocol: {from: [127.0.0.1]}}
  quiet: {listen: "127.0.0.1:0", upstream: up, proxy_protocol: {from: [127.0.0.1], optional: true}, log: {sessions: no_probes}}
`, up.addr)))
	for _, listener := range []string{"front", "quiet"} {
		haproxyBefore("send-proxy-v2 check inter 100ms")(t, a.addr(listener))
		a.metric("ambassador_sessions_total{listener="+listener+",reason=probe}", 3)
	}
	a.await(`"listener":"front","client":"127.0.0.1:\d+","upstream":"up",.*"reason":"probe"`)
	conn := a.connect("quiet") // without a header
	line(t, conn, "hello")
	conn.Close()
	a.await(`"listener":"quiet",.*"reason":"closed"`)
	if m := regexp.MustCompile(`.*"listener":"quiet",.*"reason":"(probe|downstream_reset)".*`).FindString(a.stderr.String()); m != "" {
		t.Errorf("a check is logged: %s", m)
	}
	if n, err := sample(a.process, "ambassador_sessions_total{reason=downstream_reset}"); err != nil || n != 0 {
		t.Errorf("%v sessions were reset, %v", n, err)
	}
}

// TestProxyFields proves that what HAProxy says of a client in the fields of its header
// arrives at an HAProxy behind us.
func TestProxyFields(t *testing.T) {
	t.Parallel()
	server := newHAProxy(t, func(d *daemon) string {
		return "frontend f\n  mode http\n  bind " + d.addr() + " accept-proxy\n" +
			"  http-request return status 200 content-type text/plain lf-string \"client %[fc_pp_unique_id]\\n\"\n"
	})
	a := start(t, "run", "-c", writeFile(t, "a.yaml", fmt.Sprintf(`
upstreams: {up: {endpoints: [%q], proxy_protocol: v2}}
listeners: {front: {listen: "127.0.0.1:0", upstream: up, proxy_protocol: {from: [127.0.0.1]}}}
`, server.addr())))
	before := newHAProxy(t, func(d *daemon) string {
		return "listen l\n  mode http\n  unique-id-format id-of-%[src_port]\n  bind " + d.addr() + "\n  server us " + a.addr("front") + " send-proxy-v2 proxy-v2-options unique-id,crc32c\n"
	})
	c, err := dialTCP(before.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, port, _ := net.SplitHostPort(c.LocalAddr().String())
	if got, err := askWho(c); err != nil || got != "id-of-"+port {
		t.Errorf("the server sees %q, %v; want id-of-%s", got, err, port)
	}
}

// TestNginxOfTheOtherFamily proves that nginx's stream module behind a balancer agrees
// with us on a client whose family is not that of nginx's own address.
func TestNginxOfTheOtherFamily(t *testing.T) {
	t.Parallel()
	server := haproxyBehind(t)
	a := start(t, "run", "-c", writeFile(t, "a.yaml", fmt.Sprintf(`
upstreams: {up: {endpoints: [%q], proxy_protocol: v2}}
listeners: {front: {listen: "127.0.0.1:0", upstream: up, proxy_protocol: {from: [127.0.0.1]}}}
`, server.addr())))
	before := newNginx(t, func(d *daemon) string {
		return "stream { server { listen " + d.addr() + " proxy_protocol; set_real_ip_from 127.0.0.1; proxy_pass " + a.addr("front") + "; proxy_protocol on; } }\n"
	})
	for _, source := range []string{"2001:db8::1", "192.0.2.1"} {
		c, err := dialTCP(before.addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		header := proxyproto.HeaderProxyFromAddrs(2, &net.TCPAddr{IP: net.ParseIP(source), Port: 4711}, &net.TCPAddr{IP: net.ParseIP(source), Port: 443})
		if _, err := header.WriteTo(c); err != nil {
			t.Fatal(err)
		}
		want := source + ":4711"
		if got, err := askWho(c); err != nil || got != want {
			t.Errorf("the server sees %q, %v; want %s", got, err, want)
		}
	}
}

// TestProxyBeforeTLS proves the order on the wire: HAProxy passes TLS through to
// us behind its header, and we speak to an HAProxy behind a header, then in TLS.
func TestProxyBeforeTLS(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	keys.name(t, "batch", leaf{dns: []string{"n1.batch.test"}})
	both, err := os.ReadFile(keys.file("server.crt"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(keys.file("server.key"))
	if err != nil {
		t.Fatal(err)
	}
	server := newHAProxy(t, func(d *daemon) string {
		pem := d.write(t, "server.pem", string(both)+string(key))
		return "frontend f\n  mode http\n  bind " + d.addr() + " accept-proxy ssl crt " + pem + " ca-file " + keys.file("ca.crt") + " verify required\n" +
			"  http-request return status 200 content-type text/plain lf-string \"client %[src]:%[src_port]\\n\"\n"
	})
	a := start(t, "run", "-c", writeFile(t, "a.yaml", fmt.Sprintf(`
identities: {me: {files: {cert: %[1]s/server.crt, key: %[1]s/server.key, ca: %[1]s/ca.crt}}}
upstreams: {up: {endpoints: [%[2]q], proxy_protocol: v2, tls: {identity: me, server_name: localhost}}}
listeners: {front: {listen: "127.0.0.1:0", upstream: up, proxy_protocol: {from: [127.0.0.1]}, tls: {identity: me, principals: ["dns:*.batch.test"]}}}
`, keys.dir, server.addr())))
	before := haproxyBefore("send-proxy-v2")(t, a.addr("front"))
	raw, err := dialTCP(before.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	client, err := askWho(tls.Client(raw, keys.caller(t, "batch")))
	if err != nil || client != raw.LocalAddr().String() {
		t.Errorf("the server sees %s, %v; we are %s", client, err, raw.LocalAddr())
	}
	raw.Close()
	if r, err := logged(a.process, peerOf(a.process, raw)); err != nil || r.Principal != "dns:n1.batch.test" {
		t.Errorf("record %+v, %v", r, err)
	}
}
