package integration

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// rsaServer makes a self-signed RSA certificate for localhost, and returns the flags of
// openssl s_server that show it, and its file.
func rsaServer(t testing.TB) (flags []string, cert string) {
	t.Helper()
	need(t, "openssl")
	dir := shortDir(t)
	cert, key := dir+"/rsa.crt", dir+"/rsa.key"
	out, err := exec.Command("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
		"-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost").CombinedOutput()
	if err != nil {
		t.Fatalf("openssl req: %v\n%s", err, out)
	}
	return []string{"-cert", cert, "-key", key}, cert
}

// sServer starts openssl s_server, which answers each line with the line reversed.
func sServer(t testing.TB, flags ...string) *daemon {
	t.Helper()
	d := newDaemon(t)
	d.command = func() *exec.Cmd {
		return exec.Command("openssl", append([]string{"s_server", "-accept", d.addr(), "-rev"}, flags...)...)
	}
	d.start(t)
	return d
}

// beforeOld starts the ambassador before one server for localhost, with this section tls
// and these other lines. Nothing dials but the sessions.
func beforeOld(t testing.TB, addr, tls, lines string) *ambassador {
	t.Helper()
	file := writeFile(t, "ambassador.yaml", fmt.Sprintf(`listeners:
  front: {listen: "127.0.0.1:0", upstream: old}
upstreams:
  old:
    endpoints: ["%s"]
    required: false
    health: {interval: 0s}
    tls: {server_name: localhost, %s}
%s`, addr, tls, lines))
	return start(t, "run", "-c", file)
}

// TestServersThatRefuseToResume proves that no session is lost where a server answers
// the offer to resume TLS with an alert: OpenSSL does without a session id context.
func TestServersThatRefuseToResume(t *testing.T) {
	needNetcat(t)
	keys := newPKI(t)
	socat := func(flags string) func(*testing.T) string {
		return func(t *testing.T) string {
			need(t, "socat")
			d := newDaemon(t)
			d.command = func() *exec.Cmd {
				return exec.Command("socat", fmt.Sprintf("OPENSSL-LISTEN:%s,bind=127.0.0.1,reuseaddr,fork,cert=%s,key=%s,cafile=%s,verify=1%s",
					d.port, keys.file("server.crt"), keys.file("server.key"), keys.file("ca.crt"), flags), "EXEC:cat")
			}
			d.start(t)
			return d.addr()
		}
	}
	for _, c := range []struct {
		name         string
		server       func(*testing.T) string
		send, answer string
	}{
		{"socat", socat(""), "hello\n", "hello\n"},
		{"socat with TLS 1.2", socat(",openssl-max-proto-version=TLS1.2"), "hello\n", "hello\n"},
		{"redis", func(t *testing.T) string { return startRedis(t, keys, 100, "--tls-session-caching", "no").addr }, "PING\r\nQUIT\r\n", "+PONG\r\n+OK\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := start(t, append([]string{"forward", "--listen", "127.0.0.1:0", "--to", c.server(t), "--server-name", "localhost"}, keys.client()...)...)
			for i := range 4 {
				if _, got := netcat(t, a.addr("forward"), c.send); !strings.HasPrefix(got, c.answer) {
					t.Errorf("session %d: the client received %q, want %q", i, got, c.answer)
				}
			}
			a.await("TLS failed with a session that was to be resumed")
		})
	}
}

// TestOldTLS proves which choices of tls reach a server that has only what is old, and
// that the cause names what is missing where nothing does.
func TestOldTLS(t *testing.T) {
	needNetcat(t)
	flags, ca := rsaServer(t)
	const anyStrength = ":@SECLEVEL=0"
	for _, c := range []struct {
		name   string
		server []string
		keys   string
		cause  []string // nil: the server is reached
	}{
		{"RSA key exchange", []string{"-tls1_2", "-cipher", "AES128-SHA"}, "unsafe_ciphers: true", nil},
		{"RSA key exchange by name", []string{"-tls1_2", "-cipher", "AES256-SHA"}, "ciphers: [TLS_RSA_WITH_AES_256_CBC_SHA], unsafe_ciphers: true", nil},
		{"RSA key exchange, not allowed", []string{"-tls1_2", "-cipher", "AES128-SHA"}, "", []string{"handshake failure", "tls.unsafe_ciphers: true"}},
		{"CBC with SHA-256", []string{"-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA256"}, "unsafe_ciphers: true", nil},
		{"TLS 1.0 with RSA", []string{"-tls1", "-cipher", "AES128-SHA" + anyStrength}, `unsafe_ciphers: true, min_version: "1.0", unsafe_min_version: true`, nil},
		{"TLS 1.1", []string{"-tls1_1", "-cipher", "ECDHE-RSA-AES128-SHA" + anyStrength}, `min_version: "1.1", max_version: "1.1", unsafe_min_version: true`, nil},
		{"TLS 1.1, not allowed", []string{"-tls1_1", "-cipher", "ECDHE-RSA-AES128-SHA" + anyStrength}, "", []string{"TLS 1.2 to TLS 1.3", "tls.min_version"}},
		{"max_version", []string{"-tls1_3"}, `max_version: "1.2"`, []string{"none of the versions that we offer: TLS 1.2 ", "tls.max_version"}},
		{"one curve", []string{"-curves", "P-384"}, "curves: [secp384r1]", nil},
		{"another curve", []string{"-curves", "P-384"}, "curves: [X25519]", []string{"check tls.curves"}},
		{"post-quantum off", nil, "post_quantum: off, resumption: off", nil},
		{"DHE alone", []string{"-tls1_2", "-cipher", "DHE-RSA-AES128-SHA"}, "unsafe_ciphers: true", []string{"Go's TLS has no DHE"}},
		{"SHA-1 alone", []string{"-tls1_2", "-sigalgs", "RSA+SHA1", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256" + anyStrength}, "", []string{"GODEBUG=tlssha1=1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			tls := "ca: " + ca
			if c.keys != "" {
				tls += ", " + c.keys
			}
			a := beforeOld(t, sServer(t, append(c.server, flags...)...).addr(), tls, "")
			client, got := netcat(t, a.addr("front"), "hello\n")
			if c.cause == nil {
				if got != "olleh\n" {
					t.Errorf("the client received %q", got)
				}
				return
			}
			rec, err := ending(a.process, peer{client: client}, "tls", "upstream_tls_rejected")
			if err != nil {
				t.Fatal(err)
			}
			for _, words := range c.cause {
				if text := rec.told(); !strings.Contains(text, words) {
					t.Errorf("the record says %q, want %q in it", text, words)
				}
			}
		})
	}
}

// TestRenegotiation proves that a server may renegotiate TLS 1.2, for a client
// certificate too, where a key allows it, and that the record says what happened where
// none does.
func TestRenegotiation(t *testing.T) {
	need(t, "openssl")
	keys := newPKI(t)
	for _, c := range []struct {
		name, command, keys string
		works               bool
	}{
		{"allowed", "r\n", ", unsafe_renegotiation: true", true},
		{"allowed, for a certificate", "R\n", ", unsafe_renegotiation: true", true},
		{"not allowed", "r\n", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			commands, stdin, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { commands.Close(); stdin.Close() })
			d := newDaemon(t)
			d.command = func() *exec.Cmd {
				cmd := exec.Command("openssl", "s_server", "-accept", d.addr(), "-tls1_2", "-cert", keys.file("server.crt"), "-key", keys.file("server.key"), "-CAfile", keys.file("ca.crt"))
				cmd.Stdin = commands
				return cmd
			}
			d.start(t)
			a := beforeOld(t, d.addr(), "identity: me, ca: "+keys.file("ca.crt")+c.keys,
				fmt.Sprintf("identities:\n  me: {files: {cert: %s, key: %s}}\n", keys.file("client.crt"), keys.file("client.key")))
			client := a.connect("front")
			defer client.Close()
			says := func(text string) {
				t.Helper()
				if _, err := io.WriteString(client, text); err != nil {
					t.Fatal(err)
				}
				if _, err := d.stdout.awaitAfter(0, regexp.MustCompile("(?m)^"+text), patience, d.exited); err != nil {
					t.Fatal(err)
				}
			}
			says("one\n")
			io.WriteString(stdin, c.command)
			if !c.works {
				a.await(`"stage":"relay","reason":"upstream_tls","cause":"[^"]*","hint":"[^"]*tls.unsafe_renegotiation: true`)
				return
			}
			if _, err := d.stdout.awaitAfter(0, regexp.MustCompile(`SSL_do_handshake -> 1`), patience, d.exited); err != nil {
				t.Fatal(err)
			}
			says("two\n")
			io.WriteString(stdin, "three\n")
			answer := make([]byte, 6)
			if _, err := io.ReadFull(client, answer); err != nil || string(answer) != "three\n" {
				t.Errorf("the client received %q, %v", answer, err)
			}
		})
	}
}

// TestHalfCloseTowardsTLS12 proves that the answer arrives where the server drops it on
// close_notify, as TLS 1.2 demands, if a key holds the client's end back; and that the
// record names that key if not.
func TestHalfCloseTowardsTLS12(t *testing.T) {
	needNetcat(t)
	need(t, "socat")
	keys := newPKI(t)
	d := newDaemon(t)
	d.command = func() *exec.Cmd {
		return exec.Command("socat", "-t0.05", fmt.Sprintf("OPENSSL-LISTEN:%s,bind=127.0.0.1,reuseaddr,fork,cert=%s,key=%s,verify=0,openssl-max-proto-version=TLS1.2",
			d.port, keys.file("server.crt"), keys.file("server.key")), "SYSTEM:read x; sleep 0.5; echo answer to $x")
	}
	d.start(t)
	ca := "ca: " + keys.file("ca.crt")
	held := beforeOld(t, d.addr(), ca+", hold_half_close: true", "")
	if _, got := netcat(t, held.addr("front"), "question\n"); got != "answer to question\n" {
		t.Errorf("with hold_half_close the client received %q", got)
	}
	held.await(`"reason":"closed".*"first_close":"downstream"`)
	passed := beforeOld(t, d.addr(), ca, "")
	if _, got := netcat(t, passed.addr("front"), "question\n"); got != "" {
		t.Errorf("without hold_half_close the client received %q: the test tests nothing", got)
	}
	passed.await(`"reason":"closed","cause":"[^"]*tls.hold_half_close: true`)
}
