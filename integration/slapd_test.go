package integration

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// newSlapd starts an LDAP server with one empty database, which takes nothing
// but StartTLS and demands our certificate; without keys it takes no TLS.
func newSlapd(t testing.TB, keys *pki) *daemon {
	t.Helper()
	server := sbin(t, "slapd")
	need(t, "ldapsearch", "ldapadd", "ldapwhoami")
	d := newDaemon(t)
	d.mkdir(t, "", "db")
	tls := ""
	if keys != nil {
		tls = fmt.Sprintf("TLSCertificateFile %s\nTLSCertificateKeyFile %s\nTLSCACertificateFile %s\nTLSVerifyClient demand\nsecurity tls=128\n",
			keys.file("server.crt"), keys.file("server.key"), keys.file("ca.crt"))
	}
	conf := d.write(t, "slapd.conf", fmt.Sprintf(`
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
%s
database mdb
suffix dc=test
rootdn cn=admin,dc=test
rootpw secret
directory %s
maxsize 268435456
dbnosync
`, tls, d.file("db")))
	d.command = func() *exec.Cmd { return exec.Command(server, "-f", conf, "-h", "ldap://"+d.addr(), "-d", "stats") }
	d.start(t)
	return d
}

// ldap is one of OpenLDAP's clients, logged in as the database's administrator.
func ldap(program, port string, args ...string) *exec.Cmd {
	line := append([]string{"-x", "-H", "ldap://127.0.0.1:" + port, "-D", "cn=admin,dc=test", "-w", "secret"}, args...)
	cmd := exec.Command(program, line...)
	cmd.Env = append(os.Environ(), "LDAPNOINIT=1", "LC_ALL=C")
	return cmd
}

// TestSlapd proves that LDAP clients without TLS work against a server that
// takes nothing else and asks for our certificate, as they do without TLS.
func TestSlapd(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	d, twin := newSlapd(t, keys), newSlapd(t, nil)
	a, port := front(t, d, keys, "--starttls", "ldap")
	both := func(program string, args ...string) string {
		t.Helper()
		return twins(t, ldap(program, twin.port, args...), ldap(program, port, args...))
	}
	if out, stderr, err := try(ldap("ldapwhoami", d.port)); err == nil || !strings.Contains(stderr, "onfidentiality required") {
		t.Errorf("the server takes plaintext: %v, %s%s", err, out, stderr)
	}
	if got := both("ldapwhoami"); !strings.Contains(got, "dn:cn=admin,dc=test") {
		t.Errorf("ldapwhoami: %s", got)
	}
	both("ldapwhoami", "-w", "wrong")
	both("ldapadd", "-c", "-f", ldif(t))
	if n := strings.Count(both("ldapsearch", "-LLL", "-z", "none", "-b", "dc=test", "(uid=user*)", "cn", "uid"), "\ndn: "); n != 10000 {
		t.Errorf("%d entries came back, want 10000", n)
	}
	both("ldapsearch", "-LLL", "-b", "ou=nowhere,dc=test")
	if _, stderr, err := try(ldap("ldapwhoami", port, "-ZZ")); err == nil || !strings.Contains(stderr, "TLS already started") {
		t.Errorf("StartTLS of the client's own: %v, %q", err, stderr)
	}
	if got := whoami(t, port); !strings.Contains(got, "dn:cn=app") {
		t.Errorf("SASL EXTERNAL is %q, want the ambassador's certificate", got)
	}
	rejected(t, d, keys, "ldap", "upstream_early_close", func(port string) *exec.Cmd { return ldap("ldapwhoami", port) })

	firstContact(t, d, keys, "", "", "--starttls ldap")

	d.stop(t)
	_, stderr, err := try(ldap("ldapwhoami", port))
	if want := "Server is unavailable (52)"; err == nil || !strings.Contains(stderr, want) || !strings.Contains(stderr, "ambassador: dial") {
		t.Errorf("while the server is down: %v, %q; want %q with the reason", err, stderr, want)
	}
	a.await(`"stage":"dial","reason":"refused"`)
	d.start(t)
	run(t, ldap("ldapwhoami", port))
}

// ldif is a file of ten thousand people.
func ldif(t testing.TB) string {
	var b strings.Builder
	b.WriteString("dn: dc=test\nobjectClass: dcObject\nobjectClass: organization\no: test\ndc: test\n\n")
	for i := range 10000 {
		fmt.Fprintf(&b, "dn: uid=user%d,dc=test\nobjectClass: inetOrgPerson\nuid: user%[1]d\ncn: User %[1]d\nsn: %[1]d\n\n", i)
	}
	return writeFile(t, "people.ldif", b.String())
}

// whoami logs in with SASL EXTERNAL, which ldapwhoami offers only through TLS of
// its own, and asks the server who that is.
func whoami(t testing.TB, port string) string {
	t.Helper()
	k := newTalk(t, port)
	k.say("\x30\x18\x02\x01\x01\x60\x13\x02\x01\x03\x04\x00\xa3\x0c\x04\x08EXTERNAL\x04\x00")
	k.hear("\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00")
	k.say("\x30\x1e\x02\x01\x02\x77\x19\x80\x171.3.6.1.4.1.4203.1.11.3")
	return k.hear("app")
}
