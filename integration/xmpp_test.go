package integration

import (
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// newProsody starts an XMPP server for the domain localhost, which takes nothing
// but STARTTLS and demands our certificate; without keys it has no TLS.
func newProsody(t testing.TB, keys *pki) *daemon {
	t.Helper()
	server := sbin(t, "prosody")
	d := newDaemon(t)
	d.mkdir(t, "", "data", "data/localhost", "data/localhost/accounts")
	d.write(t, "data/localhost/accounts/app.dat", `return { ["password"] = "secret"; };`)
	module, tls := "", "c2s_require_encryption = false\nallow_unencrypted_plain_auth = true\n"
	if keys != nil {
		module = `"tls";`
		tls = fmt.Sprintf("c2s_require_encryption = true\nssl = { key = %q; certificate = %q; cafile = %q; verify = { \"peer\", \"fail_if_no_peer_cert\" }; verifyext = { lsec_continue = false } }\n",
			keys.file("server.key"), keys.file("server.crt"), keys.file("ca.crt"))
	}
	conf := d.write(t, "prosody.cfg.lua", fmt.Sprintf(`
run_as_root = true
pidfile = "%[1]s/pid"
data_path = "%[1]s/data"
interfaces = { "127.0.0.1" }
c2s_ports = { %[2]s }
c2s_direct_tls_ports = { }
s2s_ports = { }
http_ports = { }
https_ports = { }
modules_enabled = { "saslauth"; "disco"; "roster"; %[3]s }
modules_disabled = { "s2s"; "offline"; "http" }
authentication = "internal_plain"
log = { debug = "*console" }
%[4]s
VirtualHost "localhost"
`, d.dir, d.port, module, tls))
	d.command = func() *exec.Cmd {
		cmd := exec.Command(server, "--config", conf, "-F")
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		return cmd
	}
	d.start(t)
	return d
}

const (
	xmppOpen  = "<?xml version='1.0'?><stream:stream to='localhost' from='app@localhost' version='1.0' xml:lang='en' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>"
	xmppLists = "</stream:features>"
)

// TestProsody proves that an XMPP client without TLS logs in at a server that
// takes nothing else and asks for our certificate, as it does without TLS.
func TestProsody(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	d, twin := newProsody(t, keys), newProsody(t, nil)
	a, port := front(t, d, keys, "--starttls", "xmpp")
	login := func(port, password string) (heard string) {
		k := newTalk(t, port)
		k.say(xmppOpen)
		heard = k.hear(xmppLists)
		k.say("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>" + base64.StdEncoding.EncodeToString([]byte("\x00app\x00"+password)) + "</auth>")
		if password != "secret" {
			return heard + k.hear("</failure>")
		}
		heard += k.hear("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>")
		k.say(xmppOpen)
		heard += k.hear(xmppLists)
		k.say("<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r</resource></bind></iq>" +
			"<iq type='get' id='2' to='localhost'><query xmlns='http://jabber.org/protocol/disco#info'/></iq></stream:stream>")
		rest, err := io.ReadAll(k.c)
		if err != nil {
			t.Error(err)
		}
		return heard + string(rest)
	}
	// Prosody chooses the ids of streams, the order of attributes and that of
	// features; what is struck besides is the mechanism of certificates and those
	// that are bound to TLS, which a server offers only under TLS.
	normal := func(s string) string {
		s = strings.ReplaceAll(s, "/>", " />")
		s = regexp.MustCompile(`<mechanism>(EXTERNAL|SCRAM-SHA-[0-9]+-PLUS)</mechanism>`).ReplaceAllString(s, "")
		tags := regexp.MustCompile(`<[^>]*>|[^<]+`).FindAllString(regexp.MustCompile(`id='[0-9a-f-]{8,}'`).ReplaceAllString(s, ""), -1)
		for i, tag := range tags {
			words := strings.FieldsFunc(tag, func(r rune) bool { return strings.ContainsRune(" <>", r) })
			slices.Sort(words)
			tags[i] = strings.Join(words, " ")
		}
		slices.Sort(tags)
		return strings.Join(tags, "\n")
	}
	for _, password := range []string{"secret", "wrong"} {
		got, want := login(port, password), login(twin.port, password)
		if normal(got) != normal(want) {
			t.Errorf("through the ambassador:\n%s\nto the twin:\n%s", got, want)
		}
		if strings.Contains(got, "starttls") {
			t.Errorf("the client is offered STARTTLS: %s", got)
		}
	}
	if _, err := d.stdout.awaitAfter(0, regexp.MustCompile(`Stream encrypted \(TLSv1\.3`), patience, d.exited); err != nil {
		t.Error(err)
	}
	plain := newTalk(t, d.port)
	plain.say(xmppOpen)
	if got := plain.hear(xmppLists); strings.Contains(got, "<mechanism>") {
		t.Errorf("the server takes a login in plaintext: %s", got)
	}

	conf := place{addr: d.addr(), starttls: "xmpp", identity: "client-other"}.configFile(t, keys)
	other := start(t, "run", "-c", conf)
	_, otherPort, _ := strings.Cut(other.addr("front"), ":")
	k := newTalk(t, otherPort)
	k.say(xmppOpen)
	io.ReadAll(k.c)
	other.await(`"reason":"upstream_tls_rejected"`)

	firstContact(t, d, keys, "", "", "an XMPP stream.*--starttls xmpp")
	d.stop(t)
	k = newTalk(t, port)
	k.say(xmppOpen)
	if got := k.hear("</stream:stream>"); !strings.Contains(got, "remote-connection-failed") || !strings.Contains(got, "(refused)") {
		t.Errorf("while the server is down the client is told %q", got)
	}
	a.await(`"stage":"dial","reason":"refused"`)
}
