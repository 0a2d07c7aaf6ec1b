package integration

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestProbesLeaveNoErrors proves that health through STARTTLS is a well-behaved
// client's: the real server's own log has every probe as a connection that ended in
// good order. MySQL's has one line for the only probe that it gets while it is well.
func TestProbesLeaveNoErrors(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	imap := func(t testing.TB) *daemon { d, _ := newDovecot(t, keys); return d }
	for _, c := range []struct {
		protocol string
		server   func(t testing.TB) *daemon
		farewell string // the server's words for a client that has taken leave
	}{
		{"ldap", func(t testing.TB) *daemon { return newSlapd(t, keys) }, `op=1 UNBIND\n[^\n]* fd=\d+ closed\n`},
		{"smtp", func(t testing.TB) *daemon { return newPostfix(t, keys) }, `disconnect from \S+ ehlo=1 starttls=1 quit=1 commands=3`},
		{"imap", imap, `imap-login: Info: Disconnected: Aborted login by logging out [^\n]* TLS`},
		{"pop3", func(t testing.TB) *daemon { d, pop3 := newDovecot(t, keys); d.port = pop3; return d }, `pop3-login: Info: Disconnected: Aborted login by logging out [^\n]* TLS`},
		{"xmpp", func(t testing.TB) *daemon { return newProsody(t, keys) }, `Client disconnected: connection closed`},
		{"mysql", func(t testing.TB) *daemon { return newMariaDB(t, keys).daemon }, ""},
	} {
		t.Run(c.protocol, func(t *testing.T) {
			t.Parallel()
			d := c.server(t)
			out := d.stderr
			if c.protocol == "smtp" || c.protocol == "xmpp" { // whose servers log there
				out = d.stdout
			}
			from := out.len()
			a := start(t, "run", "-c", upstreamOf(t, keys, []string{d.addr()}, "starttls: "+c.protocol, "health: {interval: 200ms, idle_interval: 0s}"))
			a.metric("ambassador_addresses{upstream=up,health=healthy}", 1)
			want := `(?s)(` + c.farewell + `.*){4}`
			if c.farewell == "" {
				during(10 * 200 * time.Millisecond)
				want = `Aborted connection .*closed normally without authentication`
			}
			if _, err := out.awaitAfter(from, regexp.MustCompile(want), patience, d.exited); err != nil {
				t.Fatalf("%v\n%s", err, tail(out.String(), 8<<10))
			}
			log := out.String()[from:]
			if n := strings.Count(log, "Aborted connection"); c.farewell == "" && n != 1 {
				t.Errorf("%d probes of a healthy server:\n%s", n, log)
			}
			log = log[regexp.MustCompile(c.farewell).FindStringIndex(log)[1]:] // before it: whether the port answers
			complaint := regexp.MustCompile(`(?im)^.*(connection lost|lost connection|negotiation failure|improper|timeout|fatal|panic|\berror\b|traceback).*$`)
			if m := complaint.FindString(log); m != "" {
				t.Errorf("the server complains: %s", m)
			}
		})
	}
}

// TestProbesLogIn proves that with health.user a MySQL server is probed as any
// other, and sees good clients only: MariaDB with a password, and what stands for
// MySQL 8, which wants the password itself.
func TestProbesLogIn(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	health := func(password string) string {
		return fmt.Sprintf("health: {interval: 100ms, idle_interval: 0s, user: native, password_file: %s}", writeFile(t, "password", password))
	}
	db := newMariaDB(t, keys)
	status := func(name string) (n int) {
		t.Helper()
		out := run(t, db.client("", "root", "-N", "-e", "show global status like '"+name+"'"))
		if _, err := fmt.Sscanf(out, name+"\t%d", &n); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		return n
	}
	aborted, from := status("Aborted_connects"), db.stderr.len()
	a := start(t, "run", "-c", upstreamOf(t, keys, []string{db.addr()}, "starttls: mysql", health("secret\n")))
	a.metric("ambassador_addresses{upstream=up,health=healthy}", 1)
	before := status("Connections")
	err := eventually(patience, func() error {
		if n := status("Connections") - before; n < 40 { // every second is ours
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if n, clients := status("Aborted_connects")-aborted, status("Aborted_clients"); n != 0 || clients != 0 {
		t.Errorf("the server counts %d clients that failed, and %d that left without a word", n, clients)
	}
	if log := db.stderr.String()[from:]; strings.Contains(log, "borted") {
		t.Errorf("the server complains:\n%s", log)
	}

	wrong := start(t, "run", "-c", upstreamOf(t, keys, []string{db.addr()}, "starttls: mysql", health("wrong")))
	wrong.await(`"msg":"health".*"to":"unhealthy".*refused the login of health.user: 1045`)
	wrong.await(`"msg":"health".*"to":"unknown"`) // and its sessions are not kept from it for good

	srv := startServer(t, nil, mysql8(keys.mtls(t)))
	b := start(t, "run", "-c", upstreamOf(t, keys, []string{srv.addr}, "starttls: mysql", health("secret")))
	b.metric("ambassador_addresses{upstream=up,health=healthy}", 1)
	if err := srv.received("password secret", patience); err != nil {
		t.Error(err)
	}
}
