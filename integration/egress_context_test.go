package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// proxyV2 is a PROXY header of version 2, for a connection between loopback
// addresses, with a context in TLV 0xE4.
func proxyV2(context string) string {
	const signature = "\r\n\r\n\x00\r\nQUIT\n"
	body := "\x7f\x00\x00\x09\x7f\x00\x00\x01\x12\x34\x56\x78" + "\xe4" + string([]byte{byte(len(context) >> 8), byte(len(context))}) + context
	return signature + "\x21\x11" + string([]byte{byte(len(body) >> 8), byte(len(body))}) + body
}

// TestContext proves, for each way in which a client can give hints about its own
// connection, that they are followed and recorded; that they cannot widen what the
// configuration allows; and that an invalid hint is refused.
func TestContext(t *testing.T) {
	t.Parallel()
	live := startServer(t, nil, speaksFirst("welcome\n"))
	dead, stuck := closedPort(t).addr, fullQueue(t).addr
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
upstreams:
  here: {dynamic: true, connect: {timeout: 20s, attempts: 3, backoff: 1ms}, breaker: {failures: 0}}
  dead: {endpoints: ["%[1]s"], connect: {timeout: 20s, attempts: 3, backoff: 1ms}, breaker: {failures: 0}, health: {interval: 0s}, required: false}
  stuck: {endpoints: ["%[2]s"], connect: {timeout: 20s, attempts: 3, backoff: 1ms}, breaker: {failures: 0}, health: {interval: 0s}, required: false}
  ready: {endpoints: ["%[3]s"], preconnect: {connections: 2}}
listeners:
  socks: {listen: "127.0.0.1:0", context: true, socks5: {users_file: %[4]s}, rules: &rules [{port: %[5]s, upstream: ready}, {ip: [127.0.0.0/8], upstream: here}]}
  connect: {listen: "127.0.0.1:0", context: true, http_connect: {}, rules: *rules}
  todead: {listen: "127.0.0.1:0", context: true, proxy_protocol: {from: [127.0.0.0/8]}, upstream: dead}
  tostuck: {listen: "127.0.0.1:0", context: true, proxy_protocol: {from: [127.0.0.0/8]}, upstream: stuck}
  toready: {listen: "127.0.0.1:0", context: true, proxy_protocol: {from: [127.0.0.0/8]}, upstream: ready}
  deaf: {listen: "127.0.0.1:0", socks5: {users_file: %[4]s}, rules: *rules}
`, dead, stuck, live.addr, usersFile(t, "batch:secret"), hostPort(live.addr))))

	// carriers request a destination with a context, and return the answer: "ok", or the
	// refusal.
	carriers := map[string]func(to, context string) (net.Conn, string){
		"socks": func(to, context string) (net.Conn, string) {
			login := "batch"
			if context != "" {
				login += "+" + strings.ReplaceAll(context, ",", "+")
			}
			c, reply := a.socks("socks", login+":secret", to)
			if reply == socksOK {
				return c, "ok"
			}
			return c, fmt.Sprint("reply ", reply)
		},
		"connect": func(to, context string) (net.Conn, string) {
			c := a.connect("connect")
			fmt.Fprintf(c, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\nAmbassador-Context: %[2]s\r\n\r\n", to, strings.ReplaceAll(context, ",", ", "))
			in := bufio.NewReader(c)
			resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode == http.StatusOK {
				return &bufferedConn{c, in}, "ok"
			}
			return c, resp.Header.Get("Proxy-Status")
		},
		"header": func(to, context string) (net.Conn, string) {
			c := a.connect(map[string]string{dead: "todead", stuck: "tostuck", live.addr: "toready"}[to])
			fmt.Fprint(c, proxyV2(context))
			return c, "ok" // this protocol has no answer
		},
	}
	for name, ask := range carriers {
		client := func(c net.Conn) string {
			if name == "header" {
				return "127.0.0.9:4660" // of whom the header speaks, and each time the same
			}
			return c.LocalAddr().String()
		}
		end := func(what, reason string, c net.Conn, from int) record {
			t.Helper()
			c.Close()
			rec, err := loggedAfter(a.process, peer{client: client(c)}, from)
			if err != nil || rec.Reason != reason {
				t.Fatalf("%s: %s: reason %s (%s), %v, want %s", name, what, rec.Reason, rec.Cause, err, reason)
			}
			return rec
		}
		from := a.stderr.len()
		c, said := ask(dead, "attempts=1,tag=job-7")
		rec := end("attempts=1", "refused", awaitEnd(c), from)
		if rec.Attempts != 1 || rec.Tag != "job-7" || rec.Rule != "#2" && name != "header" {
			t.Errorf("%s: attempts=1,tag=job-7: the client hears %q, the record is %+v", name, said, rec)
		}
		from = a.stderr.len()
		c, _ = ask(dead, "")
		if rec := end("no context", "refused", awaitEnd(c), from); rec.Attempts != 3 || rec.Tag != "" {
			t.Errorf("%s: without a context: %+v", name, rec)
		}
		from = a.stderr.len()
		c, said = ask(stuck, "timeout=300ms")
		if rec := end("timeout", "timeout", awaitEnd(c), from); rec.Duration < 0.3 || rec.Duration > 15 {
			t.Errorf("%s: timeout=300ms: it took %.1f s, and the client hears %q", name, rec.Duration, said)
		}
		for _, context := range []string{"attempts=4", "timeout=21s", "atempts=1", "attempts=0", "tag=", "tag=a,tag=b", "retries", "timeout=2"} {
			from := a.stderr.len()
			c, said := ask(dead, context)
			if rec := end(context, "bad_greeting", awaitEnd(c), from); !strings.Contains(rec.Cause, "context: ") || rec.Attempts != 0 {
				t.Errorf("%s: %s: %+v", name, context, rec)
			}
			if want := map[string]string{"socks": "reply 1", "connect": "ambassador; error=http_request_error; ", "header": "ok"}[name]; !strings.HasPrefix(said, want) {
				t.Errorf("%s: %s: the client hears %q, want %q", name, context, said, want)
			}
		}
		hits := func() float64 {
			t.Helper()
			n, err := sample(a.process, "ambassador_preconnect_total{upstream=ready,result=hit}")
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		a.metric("ambassador_preconnected{upstream=ready}", 1)
		before := hits()
		for range 3 {
			c, said = ask(live.addr, "no_preconnect=true")
			if got := readLine(t, c); got != "welcome\n" {
				t.Errorf("%s: %q, then %q", name, said, got)
			}
			c.Close()
		}
		if n := hits() - before; n != 0 {
			t.Errorf("%s: %v sessions with no_preconnect took a connection that was ready", name, n)
		}
		c, _ = ask(live.addr, "no_preconnect=false")
		readLine(t, c)
		if n := hits() - before; n != 1 {
			t.Errorf("%s: %v sessions without took one, want 1", name, n)
		}
	}
	// Where nobody reads a context, it is a part of the user's name.
	c := a.connect("deaf")
	if reply, err := socksAsk(c, "batch+attempts=1:secret", dead); err == nil {
		t.Errorf("reply %d", reply)
	}
	a.endsAs(c, "greet", "auth_failed")
}

// awaitEnd waits until the connection is closed or reset.
func awaitEnd(c net.Conn) net.Conn {
	io.Copy(io.Discard, c)
	return c
}

// bufferedConn is a connection some of which was read already.
type bufferedConn struct {
	net.Conn
	in *bufio.Reader
}

func (c *bufferedConn) Read(b []byte) (int, error) { return c.in.Read(b) }
