package integration

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// place is the upstream of one case of TestUpstreamEndings: an address, and how
// it is configured.
type place struct {
	addr     string
	plain    bool
	starttls string
	identity string // files in the pki folder; default client; none: no certificate
	name     string // server_name; default localhost
	dns      string // a DNS server
}

// configFile writes a configuration with the one listener "front" and the one
// upstream "db" at p. Nothing dials but the sessions.
func (p place) configFile(t testing.TB, keys *pki) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "listeners:\n  front: {listen: \"127.0.0.1:0\", upstream: db}\nupstreams:\n  db:\n")
	fmt.Fprintf(&b, "    endpoints: [\"%s\"]\n    required: false\n    health: {interval: 0s}\n", p.addr)
	fmt.Fprintf(&b, "    connect: {timeout: 3s, attempt_timeout: 1s, attempts: 2}\n")
	if p.starttls != "" {
		fmt.Fprintf(&b, "    starttls: %s\n", p.starttls)
	}
	if !p.plain {
		p.writeTLS(&b, keys)
	}
	if p.dns != "" {
		fmt.Fprintf(&b, "dns: {servers: [\"%s\"]}\n", p.dns)
	}
	return writeFile(t, "ambassador.yaml", b.String())
}

func (p place) writeTLS(w io.Writer, keys *pki) {
	name, files, identity := cmp.Or(p.name, "localhost"), cmp.Or(p.identity, "client"), "identity: me, "
	if files == "none" {
		identity = ""
	}
	fmt.Fprintf(w, "    tls: {%sca: %s, server_name: %s}\n", identity, keys.file("ca.crt"), name)
	if identity != "" {
		fmt.Fprintf(w, "identities:\n  me: {files: {cert: %s, key: %s}}\n", keys.file(files+".crt"), keys.file(files+".key"))
	}
}

func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestUpstreamEndings proves that every way in which an upstream can fail has
// its own reason, the same in the log, in /metrics and in `ambassador why` asked
// by the client's own port, and that the client gets no byte of it.
func TestUpstreamEndings(t *testing.T) {
	needNetcat(t)
	keys := newPKI(t)
	secure := func(cert, clientCA string, handler func(*server, duplex), edit ...func(*tls.Config)) func(*testing.T) place {
		return func(t *testing.T) place {
			cfg, err := keys.server(cert, clientCA)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range edit {
				f(cfg)
			}
			return place{addr: startServer(t, cfg, handler).addr}
		}
	}
	plainServer := func(handler func(*server, duplex), p place) func(*testing.T) place {
		return func(t *testing.T) place {
			p.addr = startServer(t, nil, handler).addr
			return p
		}
	}
	as := func(p place, identity string) func(*testing.T) place {
		return func(t *testing.T) place {
			p.addr, p.identity = startServer(t, keys.mtls(t), echoLines).addr, identity
			return p
		}
	}
	at := func(p place) func(*testing.T) place { return func(*testing.T) place { return p } }
	tls12 := func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }

	for _, c := range []struct {
		name          string
		place         func(*testing.T) place
		stage, reason string
		cause         []string // words that the cause must have
	}{
		{"refused", closedPort, "dial", "refused", []string{"refused"}},
		{"unreachable", at(place{addr: "127.255.255.255:9", plain: true}), "dial", "unreachable", []string{"unreachable"}},
		{"no socket at a unix path", at(place{addr: "unix:/nonexistent/socket", plain: true}), "dial", "unreachable", nil},
		{"SYN unanswered", fullQueue, "dial", "timeout", nil},
		{"ClientHello unanswered", plainServer(silent, place{}), "tls", "timeout", nil},
		{"no DNS server", deadDNS, "dial", "dns", []string{"db.test"}},

		{"certificate of another CA", secure("server-other", "", echoLines), "tls", "upstream_tls", []string{"no root that we trust", "another CA"}},
		{"certificate of another name", secure("server-wrong", "", echoLines), "tls", "upstream_tls", []string{"elsewhere.test", "localhost"}},
		{"certificate expired", secure("server-expired", "", echoLines), "tls", "upstream_tls", []string{"expired"}},
		{"certificate not yet valid", secure("server-future", "", echoLines), "tls", "upstream_tls", []string{"not valid before"}},
		{"our certificate refused, TLS 1.3", secure("server", "other", echoLines), "tls", "upstream_tls_rejected", []string{"unknown certificate authority", "rejected our certificate (CN=app, issued by CN=integration CA): it does not trust that CA, and accepts only certificates of CN=another CA", "tls.ca (--ca) is only for"}},
		{"our certificate refused, TLS 1.2", secure("server", "other", echoLines, tls12), "tls", "upstream_tls_rejected", []string{"accepts only certificates of CN=another CA"}},
		{"our certificate missing", noIdentity(keys), "tls", "upstream_tls_rejected", []string{"certificate required", "no certificate is configured", "set tls.identity (--cert, --key)", "it names CN=integration CA"}},
		{"our certificate of another CA", as(place{}, "client-other"), "tls", "upstream_tls_rejected", []string{"certificate"}},
		{"our certificate expired", as(place{}, "client-expired"), "permit", "no_identity", []string{"expired"}},
		{"our certificate not yet valid", as(place{}, "client-future"), "permit", "no_identity", []string{"not valid before"}},
		{"TLS too old", secure("server", "", echoLines, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS11, tls.VersionTLS11 }), "tls", "upstream_tls_rejected", []string{"protocol version", "none of the versions that we offer: TLS 1.2 to TLS 1.3", "unsafe_min_version"}},

		{"no TLS but noise", plainServer(garbage, place{}), "tls", "upstream_tls", nil},
		{"no TLS but MySQL", plainServer(speaksFirst(mysqlGreeting), place{}), "tls", "upstream_tls", []string{"MySQL", "starttls: mysql"}},
		{"no TLS but SMTP", plainServer(speaksFirst("220 mail.test ESMTP Postfix\r\n"), place{}), "tls", "upstream_tls", []string{"SMTP", "starttls: smtp"}},
		{"no TLS but HTTP", plainServer(speaksFirst("HTTP/1.1 400 Bad Request\r\n\r\n"), place{}), "tls", "upstream_tls", []string{"HTTP"}},
		{"TLS by the byte", plainServer(trickle, place{}), "tls", "timeout", nil},
		{"closes on ClientHello", plainServer(earlyClose, place{}), "tls", "upstream_tls", nil},

		{"PostgreSQL without TLS", plainServer(refusesPostgresTLS, place{starttls: "postgres"}), "starttls", "starttls_refused", []string{"ssl = on"}},
		{"starttls but noise", plainServer(garbage, place{starttls: "postgres"}), "starttls", "starttls_refused", nil},
		{"starttls unanswered", plainServer(silent, place{starttls: "postgres"}), "starttls", "timeout", nil},

		{"resets", plainServer(resetter, place{plain: true}), "relay", "upstream_reset", nil},
		{"resets below TLS", secure("server", "ca", resetter), "relay", "upstream_reset", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := start(t, "run", "-c", c.place(t).configFile(t, keys))
			client, got := netcat(t, a.addr("front"), "hello\n")
			if got != "" {
				t.Errorf("the client received %q, want nothing", got)
			}
			rec, err := ending(a.process, peer{client: client}, c.stage, c.reason)
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range c.cause {
				if !strings.Contains(rec.told(), word) {
					t.Errorf("the record says %q, want it to say %q", rec.told(), word)
				}
			}
		})
	}
}

// netcat runs the real nc once: it sends text, ends its direction and reads to
// the end. It returns the client address, whose port it chose, and the answer.
func netcat(t testing.TB, addr, text string) (client, answer string) {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	host, to, _ := strings.Cut(addr, ":")
	cmd := exec.Command("nc", "-N", "-s", "127.0.0.1", "-p", port, host, to)
	cmd.Stdin = strings.NewReader(text)
	p, err := launch(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.exit(patience + late()); err != nil { // a reset makes nc fail, which is no news
		p.end()
		t.Fatal(err)
	}
	return "127.0.0.1:" + port, p.stdout.String()
}

func closedPort(t *testing.T) place {
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	return place{addr: "127.0.0.1:" + port, plain: true}
}

func fullQueue(t *testing.T) place {
	f, err := newFull()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	return place{addr: f.addr, plain: true}
}

func deadDNS(t *testing.T) place {
	p := closedPort(t)
	return place{addr: "db.test:5432", plain: true, dns: p.addr}
}

func noIdentity(keys *pki) func(*testing.T) place {
	return func(t *testing.T) place {
		return place{addr: startServer(t, keys.mtls(t), echoLines).addr, identity: "none"}
	}
}

// TestUpstreamEarlyClose proves that a server which ends first, before its first
// byte, is told from one that ends later. The client keeps its side open.
func TestUpstreamEarlyClose(t *testing.T) {
	t.Parallel()
	a := start(t, "run", "-c", frontFile(t, startServer(t, nil, earlyClose).addr, "", ""))
	c := a.connect("front")
	if got, err := io.ReadAll(c); len(got) > 0 || err != nil {
		t.Errorf("the client reads %q, %v; want a FIN", got, err)
	}
	c.Close()
	if _, err := ending(a.process, peerOf(a.process, c), "relay", "upstream_early_close"); err != nil {
		t.Error(err)
	}
}
