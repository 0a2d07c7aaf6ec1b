package integration

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// issueAs makes NAME.crt and NAME.key by an authority, after a change of the template.
func (p *pki) issueAs(t testing.TB, a *authority, name string, l leaf, change func(*x509.Certificate)) {
	t.Helper()
	l.change = change
	made, err := a.issue(l)
	if err == nil {
		err = made.write(p.dir, name)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// authority makes an authority with the name, changed, and NAME.crt.
func (p *pki) authority(t testing.TB, file, name string, change func(*x509.Certificate)) *authority {
	t.Helper()
	a, err := newAuthority(name, change)
	if err == nil {
		err = os.WriteFile(p.file(file+".crt"), a.pem, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// causes is a pki with every certificate for which TLS fails in a way of its own.
func causes(t testing.TB) *pki {
	t.Helper()
	keys := newPKI(t)
	here := []string{"localhost", "127.0.0.1"}
	keys.authority(t, "stale", "integration CA", nil)
	plain := keys.authority(t, "plain", "plain CA", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = false, false })
	sha1 := func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }
	usage := func(u x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{u} }
	}
	keys.issueAs(t, keys.ca, "server-sha1", leaf{cn: "server", dns: here}, sha1)
	keys.issueAs(t, keys.ca, "server-eku", leaf{cn: "server", dns: here}, usage(x509.ExtKeyUsageClientAuth))
	keys.issueAs(t, keys.ca, "server-dnsip", leaf{cn: "server", dns: []string{"127.0.0.1"}}, func(c *x509.Certificate) { c.IPAddresses = nil })
	keys.issueAs(t, plain, "server-plain", leaf{cn: "server", dns: here}, nil)
	keys.issueAs(t, keys.ca, "server-other-name", leaf{cn: "foo", dns: []string{"foo.test"}}, nil)
	keys.issueAs(t, keys.ca, "client-eku", leaf{cn: "app"}, usage(x509.ExtKeyUsageServerAuth))
	keys.negative(t, "server", "server-negative")
	return keys
}

// negative copies a pair, with the serial number made negative. No signature fits then,
// but no program looks at that before it has parsed the certificate.
func (p *pki) negative(t testing.TB, from, to string) {
	t.Helper()
	text, err := os.ReadFile(p.file(from + ".crt"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	number := c.SerialNumber.Bytes()
	at := bytes.Index(block.Bytes, number)
	if block.Bytes[at-1] == 0 { // the sign
		at--
	}
	block.Bytes[at] |= 0x80
	key, err := os.ReadFile(p.file(from + ".key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := (pair{cert: pem.EncodeToMemory(block), key: key}).write(p.dir, to); err != nil {
		t.Fatal(err)
	}
}

// opensslServer runs `openssl s_server` with a certificate of the pki.
func opensslServer(t *testing.T, keys *pki, cert string, flags ...string) *daemon {
	t.Helper()
	need(t, "openssl")
	d := newDaemon(t)
	args := append([]string{"s_server", "-accept", d.addr(), "-cert", keys.file(cert + ".crt"), "-key", keys.file(cert + ".key"), "-quiet", "-naccept", "100"}, flags...)
	d.command = func() *exec.Cmd { return exec.Command("openssl", args...) }
	d.start(t)
	return d
}

// TestUpstreamCauses proves with OpenSSL's server that each way in which TLS with a
// server fails is told with its cause, and with the fix for that cause alone.
func TestUpstreamCauses(t *testing.T) {
	t.Parallel()
	needNetcat(t)
	keys := causes(t)
	wants := func(ca string, more ...string) []string {
		return append([]string{"-Verify", "1", "-verify_return_error", "-CAfile", keys.file(ca + ".crt")}, more...)
	}
	const broken, weak = "DEFAULT@SECLEVEL=0", "ECDHE-RSA-AES128-GCM-SHA256"
	for _, c := range []struct {
		name   string
		cert   string   // of the server
		flags  []string // of the server
		tls    string   // of the upstream, beside identity and roots
		client string   // our certificate; empty: none
		ca     string   // our roots
		reason string
		cause  string
		hint   string
	}{
		{"protocol version", "server", []string{"-tls1_1", "-cipher", broken}, "", "", "ca", "upstream_tls_rejected", "none of the versions that we offer: TLS 1.2 to TLS 1.3", "tls.unsafe_min_version"},
		{"no cipher in common", "server", []string{"-tls1_2", "-cipher", weak}, "", "", "ca", "upstream_tls_rejected", "no cipher suite, curve or signature algorithm in common", "enable ECDHE"},
		{"unrecognised name", "server", []string{"-servername", "foo.test", "-servername_fatal", "-cert2", keys.file("server-other-name.crt"), "-key2", keys.file("server-other-name.key")}, "", "", "ca",
			"upstream_tls_rejected", "the server does not know the name that we asked for (we ask for localhost", "set tls.server_name (--server-name)"},
		{"no ALPN in common", "server", []string{"-alpn", "x"}, "alpn: [h2]", "", "ca", "upstream_tls_rejected", "none of the protocols that we offer in ALPN: h2", "set tls.alpn"},

		{"no certificate, TLS 1.3", "server", wants("ca"), "", "", "ca", "upstream_tls_rejected", "requires a client certificate, and we sent none: no certificate is configured", "(it names CN=integration CA)"},
		{"no certificate, TLS 1.2", "server", wants("ca", "-tls1_2"), "", "", "ca", "upstream_tls_rejected", "no certificate is configured", "set tls.identity (--cert, --key)"},
		{"unknown CA, TLS 1.3", "server", wants("other"), "", "client", "ca", "upstream_tls_rejected", "the server rejected our certificate (CN=app, issued by CN=integration CA): it does not trust that CA, and accepts only certificates of CN=another CA", "tls.ca (--ca) is only for its certificate"},
		{"unknown CA, TLS 1.2", "server", wants("other", "-tls1_2"), "", "client", "ca", "upstream_tls_rejected", "accepts only certificates of CN=another CA", "tls.ca (--ca) is only for its certificate"},
		{"a CA of the same name with another key, there", "server", wants("stale"), "", "client", "ca", "upstream_tls_rejected", "though it knows one of that name", "which may have a new key"},
		{"EKU of our certificate", "server", wants("ca"), "", "client-eku", "ca", "upstream_tls_rejected", "CN=app, issued by CN=integration CA): it is not one for clients: its extended key usage lacks clientAuth", "issue it with extendedKeyUsage=clientAuth"},

		{"SHA-1 chain", "server-sha1", []string{"-cipher", broken}, "", "", "ca", "upstream_tls", "is signed with ECDSA-SHA1", "anew with SHA-256"},
		{"a CA of the same name with another key, here", "server", nil, "", "", "stale", "upstream_tls", "has another key", "made anew"},
		{"a root without basicConstraints", "server-plain", nil, "", "", "plain", "upstream_tls", "it has no basicConstraints", "basicConstraints=critical,CA:TRUE"},
		{"negative serial", "server-negative", nil, "", "", "ca", "upstream_tls", "negative serial", "let the CA issue it anew"},
		{"an address as a DNS name", "server-dnsip", nil, "server_name: 127.0.0.1", "", "ca", "upstream_tls", "has the address 127.0.0.1 as a DNS name", "subjectAltName=IP:127.0.0.1"},
		{"EKU of the server", "server-eku", nil, "", "", "ca", "upstream_tls", "lacks serverAuth", "extendedKeyUsage=serverAuth"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := opensslServer(t, keys, c.cert, c.flags...)
			a := start(t, "run", "-c", causeFile(t, keys, d.addr(), c.tls, c.client, c.ca))
			client, _ := netcat(t, a.addr("front"), "hello\n")
			told(t, a, client, "tls", c.reason, c.cause, c.hint)
		})
	}
}

// causeFile is a configuration with one TLS upstream.
func causeFile(t *testing.T, keys *pki, addr, tls, client, ca string) string {
	t.Helper()
	if !strings.Contains(tls, "server_name") {
		tls = "server_name: localhost, " + tls
	}
	text := fmt.Sprintf(`
listeners: {front: {listen: "127.0.0.1:0", upstream: db}}
upstreams: {db: {endpoints: [%q], required: false, health: {interval: 0s}, connect: {attempts: 1}, tls: {%s, ca: %s`, addr, strings.TrimSuffix(tls, ", "), keys.file(ca+".crt"))
	if client == "" {
		return writeFile(t, "ambassador.yaml", text+"}}}\n")
	}
	return writeFile(t, "ambassador.yaml", text+fmt.Sprintf(", identity: me}}}\nidentities: {me: {files: {cert: %s, key: %s}}}\n", keys.file(client+".crt"), keys.file(client+".key")))
}

// told checks the ending of a client's session: what happened, and the fix.
func told(t *testing.T, a *ambassador, client, stage, reason, cause, hint string) {
	t.Helper()
	rec, err := ending(a.process, peer{client: client}, stage, reason)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(rec.Cause, cause) || !strings.Contains(rec.Hint, hint) {
		t.Errorf("cause %q\nhint %q\nwant %q\nand %q", rec.Cause, rec.Hint, cause, hint)
	}
}

// TestServersThatOnlyClose proves that a certificate which is not configured is told
// where a server asks for it and then closes without an alert, as nginx's stream does.
func TestServersThatOnlyClose(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	echo := startServer(t, nil, echoLines)
	d := newNginx(t, func(d *daemon) string {
		return fmt.Sprintf(`stream { server { listen %[1]s ssl; ssl_certificate %[2]s/server.crt; ssl_certificate_key %[2]s/server.key;
	ssl_client_certificate %[2]s/ca.crt; ssl_verify_client on; proxy_pass %[3]s; } }`, d.addr(), keys.dir, echo.addr)
	})
	a := start(t, "run", "-c", causeFile(t, keys, d.addr(), "", "", "ca"))
	c := a.connect("front") // it keeps its side open, so that the server closes first
	io.Copy(io.Discard, c)
	c.Close()
	told(t, a, c.LocalAddr().String(), "relay", "upstream_early_close", "the server asked for a client certificate, got none, and closed the connection: no certificate is configured", "(it names CN=integration CA)")
}

// TestDownstreamCauses proves with OpenSSL's client that each way in which TLS with a
// client fails is told with its cause and its fix.
func TestDownstreamCauses(t *testing.T) {
	t.Parallel()
	need(t, "openssl")
	keys := causes(t)
	up := startServer(t, nil, echo)
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
identities:
  me: {files: {cert: %[1]s/server.crt, key: %[1]s/server.key, ca: %[1]s/ca.crt}}
  narrow: {files: {cert: %[1]s/server-eku.crt, key: %[1]s/server-eku.key}}
upstreams: {up: {endpoints: [%[2]q]}}
listeners:
  open: {listen: "127.0.0.1:0", upstream: up, tls: {identity: me, client: none, alpn: [h2]}}
  mutual: {listen: "127.0.0.1:0", upstream: up, tls: {identity: me, principals: [any]}}
  narrow: {listen: "127.0.0.1:0", upstream: up, tls: {identity: narrow, client: none}}
`, keys.dir, up.addr)))
	strict := func(ca string, more ...string) []string {
		return append([]string{"-CAfile", keys.file(ca + ".crt"), "-verify_return_error"}, more...)
	}
	const rejected = "the client rejected our certificate (CN=server, issued by CN=integration CA): "
	for _, c := range []struct {
		name, listener string
		flags          []string
		cause, hint    string
	}{
		{"unknown CA", "open", strict("other"), rejected + "it does not trust that CA", "let the client trust CN=integration CA"},
		{"unknown CA, TLS 1.2", "open", strict("other", "-tls1_2"), rejected + "it does not trust that CA", "let the client trust CN=integration CA"},
		{"another name", "open", strict("ca", "-servername", "elsewhere.test", "-verify_hostname", "elsewhere.test"), rejected + "it is not for the name that the client asked for", "asked for elsewhere.test, and the certificate is for localhost"},
		{"EKU", "narrow", strict("ca", "-purpose", "sslserver"), rejected + "it is not one for servers: its extended key usage lacks serverAuth", "extendedKeyUsage=serverAuth"},
		{"old client", "open", []string{"-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"}, "the client offers TLS 1.1 at most, and the listener requires TLS 1.2", "let the client speak TLS 1.2 or newer"},
		{"no cipher in common", "open", []string{"-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"}, "the client has no cipher suite, curve or signature algorithm for our certificate", "ECDSA"},
		{"no ALPN in common", "open", []string{"-alpn", "x"}, "the client offers only protocols in ALPN that the listener does not have: x", "tls.alpn of the listener"},
		{"no certificate, TLS 1.3", "mutual", nil, "the client sent no certificate that we can read, and the listener requires one", "tls.ca of the listener"},
		{"no certificate, TLS 1.2", "mutual", []string{"-tls1_2"}, "the client sent no certificate that we can read, and the listener requires one", "tls.ca of the listener"},
		{"a certificate of another CA", "mutual", []string{"-cert", keys.file("client-other.crt"), "-key", keys.file("client-other.key")}, `vouches for the client's certificate, which was issued by "CN=another CA"`, "set tls.ca of the listener"},
		{"EKU of the client", "mutual", []string{"-cert", keys.file("client-eku.crt"), "-key", keys.file("client-eku.key")}, "the client's certificate is not one for clients", "extendedKeyUsage=clientAuth"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			port, err := freePort()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("openssl", append([]string{"s_client", "-connect", a.addr(c.listener), "-bind", "127.0.0.1:" + port, "-quiet"}, c.flags...)...)
			cmd.Stdin = strings.NewReader("hello\n")
			p, err := launch(cmd)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.exit(patience); err != nil {
				p.end()
				t.Fatalf("%v\n%s", err, p.stderr)
			}
			told(t, a, net.JoinHostPort("127.0.0.1", port), "greet", "downstream_tls", c.cause, c.hint)
		})
	}
}
