package integration

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// makeSamples makes the certificates that all samples are made of, with openssl: ca.pem,
// and below it server.pem (localhost), revoked.pem (localhost) and app.pem, with their
// keys; and pw, a password as Windows writes it.
const makeSamples = `
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj "/CN=sample root" -days 30 -addext keyUsage=critical,keyCertSign,cRLSign
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout other.key -out other.pem -subj "/CN=other root" -days 30
openssl req -x509 -key other.key -set_serial -5 -out negative.pem -subj "/CN=negative root" -days 30
printf 'subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n' >ext
issue() { openssl req -new -key $1.key -subj "/CN=$2" | openssl x509 -req -CA ca.pem -CAkey ca.key -set_serial $3 -days 20 -extfile ext -out $1.pem; }
for name in server revoked app; do openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out $name.key; done
issue server server 1; issue revoked revoked 2; issue app app 3
printf '\357\273\277secret\r\n' >pw
printf secret >plain-pw
`

// newSamples makes a folder of certificates and returns a function that runs a shell
// script in it.
func newSamples(t *testing.T) (dir string, sh func(script string) error) {
	t.Helper()
	need(t, "openssl", "iconv")
	dir = t.TempDir()
	sh = func(script string) error {
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", "umask 077\n"+script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, tail(string(out), 2<<10))
		}
		return nil
	}
	if err := sh(makeSamples); err != nil {
		t.Fatal(err)
	}
	return dir, sh
}

// saysPeer is a TLS server that tells each client the CN of its certificate, the version
// and the protocol of ALPN. The certificates are name's in dir.
func saysPeer(t *testing.T, dir, name string) (addr string) {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven, NextProtos: []string{"h2", "ours"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go sayPeer(c.(*tls.Conn)) // ends within its deadline
		}
	}()
	return l.Addr().String()
}

func sayPeer(c *tls.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if c.Handshake() != nil {
		return
	}
	peer, state := "nobody", c.ConnectionState()
	if len(state.PeerCertificates) > 0 {
		peer = state.PeerCertificates[0].Subject.CommonName
	}
	fmt.Fprintf(c, "%s %s %s\n", peer, tls.VersionName(state.Version), state.NegotiatedProtocol)
}

// peerSaid is what the server behind a listener says; empty if the session failed.
func peerSaid(c net.Conn) string {
	line, _ := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line)
}

// fileSample is a file in a form in which people have it.
type fileSample struct {
	name string // also the file's
	make string // the script that makes it of ca.pem or app.pem
	// files are the keys of the identity; empty: ca is the file.
	files string
	// openssl is whether OpenSSL verifies a server by it (verify -CAfile), or else
	// reads it at all: the script in reads.
	openssl bool
	reads   string
	refused string // what check says; empty: it is used
	warned  string // what check warns of
	java    bool   // keytool makes it
}

var rootSamples = []fileSample{
	{name: "plain", make: "cp ca.pem plain", openssl: true},
	{name: "bom", make: `(printf '\357\273\277'; cat ca.pem) >bom`, openssl: true},
	{name: "crlf", make: `sed 's/$/\r/' ca.pem >crlf`, openssl: true},
	{name: "trailing", make: `sed 's/$/  /' ca.pem >trailing`, openssl: true},
	{name: "text", make: `openssl x509 -text -in ca.pem -out text`, openssl: true},
	{name: "commented", make: `(sed 's/^/# /' other.pem; cat ca.pem) >commented`, openssl: true},
	{name: "x509", make: `sed 's/BEGIN CERT/BEGIN X509 CERT/; s/END CERT/END X509 CERT/' ca.pem >x509`, openssl: true},
	{name: "trusted", make: `openssl x509 -in ca.pem -trustout -setalias "the root" -out trusted`, openssl: true},
	{name: "trusted-behind", make: `(cat other.pem; openssl x509 -in ca.pem -trustout) >trusted-behind`, openssl: true},
	{name: "trusted-server", make: `openssl x509 -in ca.pem -addtrust serverAuth -out trusted-server`, openssl: true},
	{name: "bundle", make: `cat negative.pem ca.pem other.pem >bundle`, openssl: true, warned: `certificate 1 of the file ("CN=negative root") is not used as a root`},
	{name: "joined", make: `(printf %s "$(cat other.pem)"; cat ca.pem) >joined`},
	{name: "literal", make: `awk '{printf "%s\\n", $0}' ca.pem >literal`},
	{name: "oneline", make: `tr -d '\n' <ca.pem >oneline`},
	{name: "spaces", make: `tr '\n' ' ' <ca.pem >spaces`},
	{name: "indented", make: `sed 's/^/    /' ca.pem >indented`},
	{name: "cr", make: `tr '\n' '\r' <ca.pem >cr`},
	{name: "utf16", make: `(printf '\377\376'; iconv -f utf-8 -t utf-16le ca.pem) >utf16`},
	{name: "utf16be", make: `(printf '\376\377'; iconv -f utf-8 -t utf-16be ca.pem) >utf16be`},
	{name: "der", make: `openssl x509 -in ca.pem -outform der -out der`, reads: "openssl x509 -in der -noout"},
	{name: "nokeys.p12", make: `openssl pkcs12 -export -nokeys -in ca.pem -passout file:plain-pw -out nokeys.p12`, files: "ca: nokeys.p12, password_file: pw", reads: "openssl pkcs12 -in nokeys.p12 -passin file:plain-pw -noout"},
	{name: "keytool.p12", make: `keytool -importcert -noprompt -alias a -file ca.pem -keystore keytool.p12 -storetype PKCS12 -storepass secret`, files: "ca: keytool.p12, password_file: pw", reads: "openssl pkcs12 -in keytool.p12 -passin file:plain-pw -noout", java: true},
	{name: "trusted-mail", make: `openssl x509 -in ca.pem -addtrust emailProtection -out trusted-mail`, reads: "openssl x509 -in trusted-mail -noout", refused: "its trust settings allow neither servers nor clients"},
	{name: "rejected", make: `openssl x509 -in ca.pem -addreject serverAuth -out rejected`, reads: "openssl x509 -in rejected -noout", warned: "no certificate of the file verifies servers"},
	{name: "locked.p12", make: `openssl pkcs12 -export -nokeys -in ca.pem -passout file:plain-pw -out locked.p12`, refused: "openssl pkcs12 -nokeys -in FILE"},
	{name: "p7b", make: `openssl crl2pkcs7 -nocrl -certfile ca.pem -out p7b`, refused: "openssl pkcs7 -print_certs -in FILE"},
	{name: "p7b-der", make: `openssl crl2pkcs7 -nocrl -certfile ca.pem -outform der -out p7b-der`, refused: "openssl pkcs7 -inform der -print_certs -in FILE"},
	{name: "base64", make: `openssl base64 -A -in ca.pem -out base64`, refused: "base64 -d FILE"},
	{name: "jks", make: `keytool -importcert -noprompt -alias a -file ca.pem -keystore jks -storetype JKS -storepass secret`, refused: "keytool -importkeystore -srcstoretype JKS", java: true},
}

// TestRootFiles compares what the ambassador makes of a file of roots with what openssl
// makes of it: a server that openssl verifies by the file is reached, and what cannot be
// used is named with the command that converts it.
func TestRootFiles(t *testing.T) {
	t.Parallel()
	dir, sh := newSamples(t)
	server := saysPeer(t, dir, "server")
	var usable []fileSample
	for _, s := range rootSamples {
		if s.files == "" {
			s.files = "ca: " + s.name
		}
		t.Run(s.name, func(t *testing.T) {
			makeSample(t, sh, s)
			verified := sh("openssl verify -purpose sslserver -CAfile "+s.name+" server.pem") == nil
			if verified != s.openssl {
				t.Errorf("openssl verify accepts the server: %v, want %v", verified, s.openssl)
			}
			checkSample(t, dir, s)
			if s.refused == "" {
				usable = append(usable, s)
			}
		})
	}
	a := start(t, "run", "-c", sampleConfig(t, dir, server, usable...))
	for i, s := range usable {
		want := "nobody TLS 1.3"
		if s.name == "rejected" {
			want = ""
		}
		if got := peerSaid(a.connect(listenerOf(i))); got != want {
			t.Errorf("%s: %q, want %q", s.name, got, want)
		}
	}
	a.await(`no root that we trust \(the identity's; not all of that file can be used: .ambassador check. says which\)`)
}

func listenerOf(i int) string { return fmt.Sprintf("l%d", i) }

// makeSample makes a sample, which openssl must read if reads is set.
func makeSample(t *testing.T, sh func(string) error, s fileSample) {
	t.Helper()
	if _, err := exec.LookPath("keytool"); s.java && err != nil {
		t.Skip("keytool is missing")
	}
	if err := sh(s.make); err != nil {
		t.Fatal(err)
	}
	if s.reads != "" {
		if err := sh(s.reads); err != nil {
			t.Errorf("openssl does not read it: %v", err)
		}
	}
}

// checkSample compares what `check` says.
func checkSample(t *testing.T, dir string, s fileSample) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), binary, "check", "-c", sampleConfig(t, dir, "127.0.0.1:1", s)).CombinedOutput()
	text := string(out)
	if (err == nil) != (s.refused == "") || !strings.Contains(text, s.refused) || !strings.Contains(text, s.warned) || s.warned == "" && strings.Contains(text, "warning:") {
		t.Errorf("check: %v\n%s\nwant %q, and a warning %q", err, text, s.refused, s.warned)
	}
}

// sampleConfig writes a configuration with one listener for each sample. Relative paths
// start in its folder, so it is in dir.
func sampleConfig(t *testing.T, dir, server string, samples ...fileSample) string {
	t.Helper()
	var ids, ups, ls strings.Builder
	for i, s := range samples {
		fmt.Fprintf(&ids, "  i%d: {files: {%s}}\n", i, s.files)
		fmt.Fprintf(&ups, "  u%d: {endpoints: [%q], required: false, health: {interval: 0s}, tls: {identity: i%d, server_name: localhost}}\n", i, server, i)
		fmt.Fprintf(&ls, "  l%d: {listen: \"127.0.0.1:0\", upstream: u%d}\n", i, i)
	}
	f, err := os.CreateTemp(dir, "*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "identities:\n%supstreams:\n%slisteners:\n%s", ids.String(), ups.String(), ls.String()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

var identitySamples = []fileSample{
	{name: "der", make: "openssl x509 -in app.pem -outform der -out der.crt; openssl pkey -in app.key -outform der -out der.key", files: "cert: der.crt, key: der.key", reads: "openssl x509 -in der.crt -noout; openssl pkey -in der.key -noout"},
	{name: "encrypted-der", make: "openssl pkcs8 -topk8 -in app.key -passout file:plain-pw -outform der -out enc.der", files: "cert: app.pem, key: enc.der, password_file: pw", reads: "openssl pkey -in enc.der -passin file:plain-pw -noout"},
	{name: "one-file", make: `(cat app.key app.pem ca.pem) | sed 's/^/  /' | tr '\n' '\r' >all.pem`, files: "cert: all.pem, key: all.pem"},
	{name: "traditional", make: "openssl ec -in app.key -out ec.key", files: "cert: app.pem, key: ec.key", reads: "openssl pkey -in ec.key -noout"},
	{name: "trusted", make: "openssl x509 -in app.pem -trustout -out app-trusted.pem", files: "cert: app-trusted.pem, key: app.key", reads: "openssl x509 -in app-trusted.pem -noout"},
	{name: "explicit", make: "openssl ecparam -name prime256v1 -genkey -param_enc explicit -noout -out explicit.key; openssl ec -in explicit.key -param_enc named_curve -out named.key; openssl req -new -key named.key -subj /CN=app | openssl x509 -req -CA ca.pem -CAkey ca.key -days 20 -extfile ext -out named.pem",
		files: "cert: named.pem, key: explicit.key", reads: "openssl pkey -in explicit.key -noout"},
	{name: "nomac", make: "openssl pkcs12 -export -nomac -inkey app.key -in app.pem -certfile ca.pem -passout file:plain-pw -out nomac.p12", files: "pkcs12: nomac.p12, password_file: pw", reads: "openssl pkcs12 -in nomac.p12 -passin file:plain-pw -noout"},
	{name: "keytool", make: "openssl pkcs12 -export -inkey app.key -in app.pem -certfile ca.pem -passout file:plain-pw -name app -out app.p12; keytool -importkeystore -noprompt -srckeystore app.p12 -srcstorepass secret -destkeystore java.p12 -deststoretype PKCS12 -deststorepass secret",
		files: "pkcs12: java.p12, ca: ca.pem, password_file: pw", reads: "openssl pkcs12 -in java.p12 -passin file:plain-pw -noout", java: true},
	{name: "explicit-certificate", make: "openssl req -x509 -new -key explicit.key -subj /CN=app -out explicit.pem", files: "cert: explicit.pem, key: explicit.key", reads: "openssl x509 -in explicit.pem -noout", refused: "openssl ec -param_enc named_curve"},
	{name: "rsa-pss", make: "openssl genpkey -algorithm RSA-PSS -out pss.key; openssl req -x509 -new -key pss.key -subj /CN=app -out pss.pem", files: "cert: pss.pem, key: pss.key", reads: "openssl pkey -in pss.key -noout", refused: "it is RSA-PSS (rsassaPss), which cannot be used here; get a certificate for an RSA"},
	{name: "pkcs12-as-cert", make: "true", files: "cert: nomac.p12, key: nomac.p12", refused: "give it as pkcs12 instead of cert and key"},
	{name: "wrong-password", make: "echo other >wrong", files: "pkcs12: nomac.p12, password_file: wrong", refused: "check password_file"},
}

// TestIdentityFiles is TestRootFiles for certificates with keys: what is read logs in at
// a server.
func TestIdentityFiles(t *testing.T) {
	t.Parallel()
	dir, sh := newSamples(t)
	server := saysPeer(t, dir, "server")
	var usable []fileSample
	for _, s := range identitySamples {
		if s.refused == "" && !strings.Contains(s.files, "p12") {
			s.files += ", ca: ca.pem"
		}
		t.Run(s.name, func(t *testing.T) {
			makeSample(t, sh, s)
			checkSample(t, dir, s)
			if s.refused == "" {
				usable = append(usable, s)
			}
		})
	}
	a := start(t, "run", "-c", sampleConfig(t, dir, server, usable...))
	for i, s := range usable {
		if got := peerSaid(a.connect(listenerOf(i))); got != "app TLS 1.3" {
			t.Errorf("%s: the server says %q, want app", s.name, got)
		}
	}
}

// TestIdentityWithoutCertificate: roots and a revocation list without a certificate
// verify servers.
func TestIdentityWithoutCertificate(t *testing.T) {
	t.Parallel()
	dir, sh := newSamples(t)
	if err := sh(`
: >index.txt; echo 01 >crlnumber
printf '[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ncrlnumber=crlnumber\ndefault_md=sha256\ndefault_crl_days=9\n' >ca.cnf
openssl ca -config ca.cnf -keyfile ca.key -cert ca.pem -revoke revoked.pem
openssl ca -config ca.cnf -keyfile ca.key -cert ca.pem -gencrl -out list.pem
openssl verify -crl_check -CAfile ca.pem -CRLfile list.pem server.pem
! openssl verify -crl_check -CAfile ca.pem -CRLfile list.pem revoked.pem`); err != nil {
		t.Fatal(err)
	}
	trust := fileSample{files: "ca: ca.pem, crl: list.pem"}
	a := start(t, "run", "-c", sampleConfig(t, dir, saysPeer(t, dir, "server"), trust))
	if got := peerSaid(a.connect(listenerOf(0))); got != "nobody TLS 1.3" {
		t.Errorf("the server says %q", got)
	}
	b := start(t, "run", "-c", sampleConfig(t, dir, saysPeer(t, dir, "revoked"), trust))
	if got := peerSaid(b.connect(listenerOf(0))); got != "" {
		t.Errorf("the revoked server says %q", got)
	}
	b.await(`was revoked by`)
}

// TestForwardFiles: forward takes a PKCS #12 file, its password, ALPN and a version.
func TestForwardFiles(t *testing.T) {
	t.Parallel()
	dir, sh := newSamples(t)
	if err := sh(`
openssl pkcs12 -export -inkey app.key -in app.pem -passout file:plain-pw -out app.p12
openssl pkcs12 -export -nokeys -in ca.pem -passout file:plain-pw -out trust.p12
openssl pkcs8 -topk8 -in app.key -passout file:plain-pw -out app.enc`); err != nil {
		t.Fatal(err)
	}
	server, file := saysPeer(t, dir, "server"), func(name string) string { return filepath.Join(dir, name) }
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--pkcs12", file("app.p12"), "--password-file", file("pw"), "--ca", file("ca.pem"), "--alpn", "ours,other", "--min-version", "1.3"}, "app TLS 1.3 ours"},
		{[]string{"--cert", file("app.pem"), "--key", file("app.enc"), "--password-file", file("pw"), "--ca", file("ca.pem")}, "app TLS 1.3"},
		{[]string{"--password-file", file("pw"), "--ca", file("trust.p12"), "--alpn", "h2"}, "nobody TLS 1.3 h2"},
	} {
		a := start(t, append([]string{"forward", "--listen", "127.0.0.1:0", "--to", server, "--server-name", "localhost"}, tt.args...)...)
		if got := peerSaid(a.connect("forward")); got != tt.want {
			t.Errorf("%v: the server says %q, want %q", tt.args, got, tt.want)
		}
	}
	cmd := exec.CommandContext(t.Context(), binary, "forward", "--listen", "127.0.0.1:0", "--to", server, "--pkcs12", file("app.p12"))
	if _, stderr, err := try(cmd); err == nil || !strings.Contains(stderr, "--pkcs12: ") || !strings.Contains(stderr, "give the right one in --password-file") {
		t.Errorf("without the password: %v, %s", err, stderr)
	}
}
