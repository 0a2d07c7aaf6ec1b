package integration

import (
	"fmt"
	"html"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// asked is a question of an operator, the command that answers it, and its card on the
// page.
type asked struct {
	card    string
	command []string
	answer  string // a pattern of the command's output
	fact    string // a pattern of the card's text
}

// cards are the answers at the top of a page, by their questions.
func cards(t *testing.T, page string) map[string][]string {
	t.Helper()
	tags := regexp.MustCompile(`<[^>]*>`)
	out := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?s)<li class="card [a-z]+">.*?<h2>(.*?)</h2>(.*?)</li>`).FindAllStringSubmatch(page, -1) {
		out[m[1]] = append(out[m[1]], html.UnescapeString(strings.TrimSpace(tags.ReplaceAllString(m[2], " "))))
	}
	return out
}

// TestSevenQuestions proves that each question of an operator has an answer in one
// command and in one place of the page, where a real PostgreSQL is in use, a server is
// dead, rules deny and report, and a reload fails. With AMBASSADOR_TEST_ARTIFACTS the
// transcript is seven.md there.
func TestSevenQuestions(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	db := newPostgres(t, keys)
	free := startServer(t, nil, echoLines)
	gone := startServer(t, nil, echoLines)
	gone.close()
	config := writeFile(t, "ambassador.yaml", fmt.Sprintf(`
admin: {listen: "127.0.0.1:0", token_file: %[1]s}
sandbox: {landlock: "off"}
identities:
  orders: {files: {cert: %[2]s, key: %[3]s}}
upstreams:
  orders_db: {endpoints: [%[4]q], starttls: postgres, tls: {identity: orders, ca: %[5]s, server_name: localhost}}
  mail: {endpoints: [%[6]q], required: false, breaker: {failures: 1}}
  internet: {dynamic: true}
listeners:
  db: {listen: "127.0.0.1:0", upstream: orders_db}
  mail: {listen: "127.0.0.1:0", upstream: mail}
  egress:
    listen: "127.0.0.1:0"
    log: {process: true}
    socks5: {}
    rules:
      - {name: payroll, host: payroll.corp.example, deny: "only for the payroll hosts"}
      - {name: trial, ip: 127.0.0.0/8, upstream: internet, report: "not on the list yet"}
`, writeFile(t, "token", "a-secret-of-32-characters-or-more\n"), keys.file("client.crt"), keys.file("client.key"), db.addr(), keys.file("ca.crt"), gone.addr))
	a := start(t, "run", "-c", config)
	a.metric("ambassador_ready", 1)
	run(t, db.client(a.addr("db"), "disable", "psql", psql("select pg_sleep(0.1)")...))
	dead := a.connect("mail")
	io.Copy(io.Discard, dead)
	_, port, _ := strings.Cut(dead.LocalAddr().String(), ":")
	// The search for a client's process has 100 ms, which a busy host may not give it at once.
	if err := eventually(patience, func() error {
		if reply, err := socksAsk(a.connect("egress"), "", "payroll.corp.example:443"); err != nil || reply != 2 {
			t.Fatalf("the denied destination: reply %d, %v", reply, err)
		}
		if out, code := a.ask("sessions", "--reason", "denied"); code != 0 || !strings.Contains(out, "(integration") {
			return fmt.Errorf("exit code %d, and no process of a denied client in\n%s", code, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	c := a.connect("egress")
	if reply, err := socksAsk(c, "", free.addr); err != nil || reply != 0 {
		t.Fatalf("the reported destination: reply %d, %v", reply, err)
	}
	a.endsAs(dead, "dial", "refused")

	reload := asked{"Did the last reload work?", []string{"status"}, `configuration loaded .* ago, at .*, at the start\n`, `^there was none`}
	transcript := []string{ask1(t, a, reload)}
	a.signal(syscall.SIGHUP)
	a.await(`"msg":"reloaded"`)
	reload = asked{reload.card, reload.command, `configuration loaded .* ago, at .*, by a reload\n`, `^yes, \S+ ago`}
	transcript = append(transcript, ask1(t, a, reload))
	if err := os.WriteFile(config, []byte("nonsense: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.signal(syscall.SIGHUP)
	a.await(`"msg":"reload failed.*nonsense`)
	for _, q := range []asked{
		{"Ready?", []string{"status"}, `\Aready, but mail: `, `^ready, with trouble .*mail 127\.0\.0\.1:\d+: .*connection refused`},
		{"Why did my connection end?", []string{"why", port}, `(?s)\Asession \S+: refused, in stage dial.*connection refused`, `^(denied|refused), \S+ ago `},
		{"When does a certificate expire?", []string{"status"}, `IDENTITY +SUBJECT +EXPIRES +LEFT[^\n]*\norders +\S+ +20\S+ \S+ +23h`, `^orders: in 23h`},
		{"Which application was denied?", []string{"sessions", "--reason", "denied"}, `(?m)^\S+ .*uid \d+ \(integration.*payroll\.corp\.example:443 .*only for the payroll hosts`, `^uid \d+, integration\S*, pid \d+, \S+ ago; \d+ of the last \d+ sessions? denied payroll\.corp\.example:443: rule payroll`},
		{"What would be denied?", []string{"report"}, `rule trial would deny this: not on the list yet\n# - \{ip: "127\.0\.0\.1", port: \d+, upstream: internet\}  # loopback address; 1 session`, `^1 session since the start most by listener egress trial: 1`},
		{reload.card, []string{"status"}, `(?s)the last reload failed.*nonsense`, `^no, \S+ ago; the old configuration is in use .*nonsense`},
		{"What is slow?", []string{"sessions", "--slow"}, `(?s)\AID .*CONNECT.*\n\S+ .*orders_db .*\d(ms|µs) `, `^(orders_db|internet): \S+ to connect median of \d sessions?; the slowest, \S+ to 127\.0\.0\.1:\d+, took \S+`},
	} {
		transcript = append(transcript, ask1(t, a, q))
	}
	if dir := os.Getenv("AMBASSADOR_TEST_ARTIFACTS"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "seven.md"), []byte(strings.Join(transcript, "\n")), 0o644); err != nil {
			t.Error(err)
		}
	}
	text, err := openMetrics(a)
	if slow := regexp.MustCompile(`ambassador_establish_seconds_bucket\{phase="tls",upstream="orders_db".* # \{session_id="(\S+)"\}`).FindStringSubmatch(text); err != nil || slow == nil {
		t.Errorf("no exemplar at the time of TLS: %v\n%s", err, text)
	} else if why, code := a.ask("why", slow[1]); code != 0 || !strings.Contains(why, "orders_db") {
		t.Errorf("why of the exemplar: %d %s", code, why)
	}
}

// ask1 asks a question in both places, and returns the transcript.
func ask1(t *testing.T, a *ambassador, q asked) string {
	t.Helper()
	out, code := a.ask(q.command...)
	if code != 0 || !regexp.MustCompile(q.answer).MatchString(out) {
		t.Errorf("%s ambassador %s: exit code %d, want %s in\n%s", q.card, strings.Join(q.command, " "), code, q.answer, out)
	}
	var facts []string
	err := eventually(patience, func() error { // the page may be a second old
		page, _, err := httpGet("http://" + a.addr("admin") + "/")
		if err != nil {
			return err
		}
		if facts = cards(t, page)[q.card]; len(facts) != 1 || !regexp.MustCompile(q.fact).MatchString(strings.Join(strings.Fields(facts[0]), " ")) {
			return fmt.Errorf("the page answers %q, want %s once", facts, q.fact)
		}
		return nil
	})
	if err != nil {
		t.Errorf("%s %v", q.card, err)
	}
	return fmt.Sprintf("## %s\n\n    $ ambassador %s\n    %s\nOn the page, the card %q: %s\n", q.card, strings.Join(q.command, " "),
		strings.ReplaceAll(strings.TrimRight(out, "\n"), "\n", "\n    ")+"\n", q.card, strings.Join(strings.Fields(strings.Join(facts, " ")), " "))
}

// openMetrics scrapes the format that has exemplars.
func openMetrics(a *ambassador) (string, error) {
	req, err := http.NewRequestWithContext(a.t.Context(), "GET", "http://"+a.addr("admin")+"/metrics", nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}
