package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/l4/outcome"
)

func TestUsersOfARunningProcess(t *testing.T) {
	echo := cmdtest.NamedEcho(t, "one")
	users := filepath.Join(t.TempDir(), "users")
	cmdtest.WriteFile(t, users, cmdtest.Htpasswd(t, "alice", "wonderland"))
	s := serveFile(t, fmt.Sprintf(`
upstreams: {net: {dynamic: true}}
listeners:
  egress:
    listen: 127.0.0.1:0
    socks5: {users_file: %s}
    rules: [{user: [alice, bob], host: localhost, upstream: net}]
`, users))
	at := s.addr("egress")
	for user, want := range map[string]byte{"alice:wonderland": 0, "alice:builder": cmdtest.LoginRefused, "bob:builder": cmdtest.LoginRefused} {
		if _, code := cmdtest.AskSOCKS5(t, at, user, cmdtest.Localhost(echo)); code != want {
			t.Errorf("%s: %d, want %d", user, code, want)
		}
	}
	cmdtest.WriteFile(t, users, cmdtest.Htpasswd(t, "bob", "builder"))
	s.err.Await(t, "users renewed")
	if _, code := cmdtest.AskSOCKS5(t, at, "bob:builder", cmdtest.Localhost(echo)); code != 0 {
		t.Errorf("a new user: %d", code)
	}
	if err := os.Remove(users); err != nil {
		t.Fatal(err)
	}
	s.err.Await(t, "users not renewed")
	if body, status := s.admin("GET", "/v1/status"); status != 200 || !strings.Contains(body, `"rules": 1`) || !strings.Contains(body, "no such file") {
		t.Errorf("status: %d %s", status, body)
	}
	s.err.Await(t, `(?s)("reason":"auth_failed".*){2}`)
	if body, _ := s.admin("GET", "/v1/sessions"); !strings.Contains(body, `"user": "bob"`) {
		t.Errorf("sessions: %s", body)
	}
}

// A reload changes the decisions of rules and the series of their metrics. Live
// sessions continue.
func TestRulesReload(t *testing.T) {
	echo := cmdtest.NamedEcho(t, "one")
	text := `
upstreams: {net: {dynamic: true}}
listeners:
  egress:
    listen: 127.0.0.1:0
    socks5: {}
    rules:
      - {name: RULE, host: localhost, upstream: net}
`
	s := serveFile(t, strings.Replace(text, "RULE", "first", 1))
	at := s.addr("egress")
	if page, _ := s.admin("GET", "/metrics"); !strings.Contains(page, `ambassador_sessions_active{listener="egress",upstream="net"} 0`+"\n") {
		t.Errorf("before the first session there are no series of it:\n%s", cmdtest.OurLines(page))
	}
	live, code := cmdtest.AskSOCKS5(t, at, "", cmdtest.Localhost(echo))
	if code != 0 {
		t.Fatalf("reply %d", code)
	}
	cmdtest.Says(t, live, "before", "one: before")
	page, _ := s.admin("GET", "/metrics")
	for _, line := range []string{`ambassador_rules_total{listener="egress",rule="first",verdict="allow"} 1`, `ambassador_rules_total{listener="egress",rule="",verdict="none"} 0`,
		`ambassador_sessions_active{listener="egress",upstream="net"} 1`} {
		if !strings.Contains(page, line+"\n") {
			t.Errorf("lacks %s in\n%s", line, cmdtest.OurLines(page))
		}
	}
	cmdtest.WriteFile(t, s.config, strings.Replace(text, "RULE", "second, port: 1", 1))
	if body, status := s.admin("POST", "/v1/reload"); status != 200 {
		t.Fatalf("reload: %d %s", status, body)
	}
	if _, code := cmdtest.AskSOCKS5(t, at, "", cmdtest.Localhost(echo)); code != 2 {
		t.Errorf("after the reload: reply %d, want 2", code)
	}
	cmdtest.Says(t, live, "after", "one: after")
	page, _ = s.admin("GET", "/metrics")
	if strings.Contains(page, `rule="first"`) || !strings.Contains(page, `ambassador_rules_total{listener="egress",rule="",verdict="none"} 1`+"\n") {
		t.Errorf("after the reload:\n%s", cmdtest.OurLines(page))
	}
}

// No client is connected to the admin API, whatever the rules allow.
func TestAdminIsGuarded(t *testing.T) {
	s := serveFile(t, `
admin: {listen: "127.0.0.1:0"}
metrics: {listen: "127.0.0.1:0"}
upstreams: {net: {dynamic: true}}
listeners:
  egress:
    listen: 127.0.0.1:0
    socks5: {}
    rules: [{host: localhost, upstream: net}, {ip: 127.0.0.0/8, upstream: net}]
`)
	for _, name := range []string{"admin", "metrics", "egress"} {
		for _, dest := range []string{s.addr(name), cmdtest.Localhost(s.addr(name))} {
			if _, code := cmdtest.AskSOCKS5(t, s.addr("egress"), "", dest); code != 2 {
				t.Errorf("%s at %s: reply %d, want 2", name, dest, code)
			}
		}
	}
	s.err.Await(t, `(?s)("reason":"`+string(outcome.Loop)+`".*){6}`)
}

// Client hints are in the session's record.
func TestContextOfAUser(t *testing.T) {
	echo := cmdtest.NamedEcho(t, "one")
	users := filepath.Join(t.TempDir(), "users")
	cmdtest.WriteFile(t, users, cmdtest.Htpasswd(t, "alice", "wonderland"))
	s := serveFile(t, fmt.Sprintf(`
upstreams: {net: {dynamic: true}}
listeners:
  egress:
    listen: 127.0.0.1:0
    socks5: {users_file: %s}
    context: true
    rules: [{user: alice, host: localhost, upstream: net}]
`, users))
	c, code := cmdtest.AskSOCKS5(t, s.addr("egress"), "alice+attempts=1+tag=job-7:wonderland", cmdtest.Localhost(echo))
	if code != 0 {
		t.Fatalf("reply %d:\n%s", code, s.err)
	}
	c.Close()
	s.err.Await(t, `"user":"alice".*"reason":"probe".*"tag":"job-7"`)
	if _, code := cmdtest.AskSOCKS5(t, s.addr("egress"), "alice+atempts=1:wonderland", cmdtest.Localhost(echo)); code == 0 {
		t.Error("an unknown key is taken")
	}
}

// A session that a rule with report allows says so in its record, and so does a denial.
func TestVerdictOnTheRecord(t *testing.T) {
	echo := cmdtest.NamedEcho(t, "one")
	s := serveFile(t, `
upstreams: {net: {dynamic: true}}
listeners:
  egress:
    listen: 127.0.0.1:0
    socks5: {}
    rules: [{name: trial, host: localhost, upstream: net, report: "not listed"}, {deny: "never"}]
`)
	c, code := cmdtest.AskSOCKS5(t, s.addr("egress"), "", cmdtest.Localhost(echo))
	if code != 0 {
		t.Fatalf("reply %d:\n%s", code, s.err)
	}
	c.Close()
	s.err.Await(t, `"rule":"trial","verdict":"would_deny","verdict_reason":"not listed","destination":"localhost:`)
	cmdtest.AskSOCKS5(t, s.addr("egress"), "", "other.test:1")
	s.err.Await(t, `"rule":"#2","verdict":"deny","verdict_reason":"never"`)
}

// On a unix socket the system reports the client's user.
func TestUIDByRule(t *testing.T) {
	echo := cmdtest.NamedEcho(t, "one")
	for uid, want := range map[int]byte{os.Getuid(): 0, os.Getuid() + 1: 2} {
		s := serveFile(t, fmt.Sprintf(`
upstreams: {net: {dynamic: true}}
listeners:
  egress:
    listen: unix:%s/s
    socks5: {}
    rules: [{uid: %d, host: localhost, upstream: net}]
`, cmdtest.ShortDir(t), uid))
		if _, code := cmdtest.AskSOCKS5(t, s.addr("egress"), "", cmdtest.Localhost(echo)); code != want {
			t.Errorf("uid %d, rule for %d: reply %d, want %d", os.Getuid(), uid, code, want)
		}
	}
}
