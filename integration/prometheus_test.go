package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// prometheus is a real Prometheus that scrapes one ambassador each second.
type prometheus struct{ *daemon }

// newPrometheus starts it with the rules, which take effect after seconds where the
// file says minutes.
func newPrometheus(t *testing.T, target, rules string) prometheus {
	t.Helper()
	d := newDaemon(t)
	for _, minutes := range []string{"1m", "5m", "10m", "15m"} {
		rules = strings.ReplaceAll(rules, "for: "+minutes+"\n", "for: 1s\n")
	}
	d.write(t, "rules.yml", rules)
	d.write(t, "prometheus.yml", fmt.Sprintf(`global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [rules.yml]
scrape_configs: [{job_name: ambassador, static_configs: [{targets: ["%s"]}]}]
`, target))
	d.command = func() *exec.Cmd {
		return exec.Command("prometheus", "--config.file="+d.file("prometheus.yml"), "--storage.tsdb.path="+d.file("data"), "--web.listen-address="+d.addr(), "--log.level=warn")
	}
	d.start(t)
	return prometheus{d}
}

// get decodes the data of an answer of the API.
func (p prometheus) get(path string, data any) error {
	c := http.Client{Timeout: patience}
	resp, err := c.Get("http://" + p.addr() + "/api/v1/" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	answer := struct{ Status, Error string }{}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Status != "success" {
		return fmt.Errorf("%s: %s %s %w", path, resp.Status, answer.Error, err)
	}
	return json.Unmarshal(body, &struct{ Data any }{data})
}

// values are the numbers that a query gives now, NaN not among them.
func (p prometheus) values(query string) (out []float64, err error) {
	var answer struct {
		Result []struct{ Value [2]any }
	}
	err = p.get("query?query="+url.QueryEscape(query), &answer)
	for _, r := range answer.Result {
		text, _ := r.Value[1].(string)
		if v, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(v) {
			out = append(out, v)
		}
	}
	return out, err
}

// firing reports whether an alert fires.
func (p prometheus) firing(name string) error {
	var answer struct {
		Alerts []struct {
			Labels map[string]string
			State  string
		}
	}
	if err := p.get("alerts", &answer); err != nil {
		return err
	}
	for _, a := range answer.Alerts {
		if a.Labels["alertname"] == name && a.State == "firing" {
			return nil
		}
	}
	return fmt.Errorf("%s does not fire; the alerts are %+v", name, answer.Alerts)
}

// panels are the queries of the dashboard by the titles of their panels, for Grafana's
// variables as it fills them in.
func panels(t *testing.T, dashboard string) map[string][]string {
	t.Helper()
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(dashboard), &d); err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for i, p := range d.Panels {
		for _, q := range p.Targets {
			title := fmt.Sprintf("%d %s", i, p.Title)
			out[title] = append(out[title], strings.NewReplacer("$instance", ".*", "$__rate_interval", "10s").Replace(q.Expr))
		}
	}
	return out
}

// printed is what `ambassador print NAME` prints.
func printed(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command(binary, "print", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// visit sends a line through a listener and reads it back.
func visit(a *ambassador) error {
	c, err := dialTCP(a.addr("in"))
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 6))
	return err
}

// TestPrometheus proves what operators see: promtool accepts the metrics and the rules,
// no panel of the dashboard is empty, the first session of a reason is a rise, and the
// alerts fire after the server is gone and after a reload that failed.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	need(t, "prometheus", "promtool")
	keys := newPKI(t)
	server := startServer(t, keys.mtls(t), echo)
	path := filepath.Join(t.TempDir(), "ambassador.yaml")
	config := fmt.Sprintf(`metrics: {listen: "127.0.0.1:0"}
identities: {app: {files: {cert: %[1]s, key: %[2]s, ca: %[3]s}}}
upstreams:
  echo:
    endpoints: ["%[4]s"]
    tls: {identity: app}
    health: {interval: 200ms, idle_interval: 200ms, fall: 2}
    preconnect: {connections: 1}
  net: {dynamic: true}
listeners:
  in: {listen: "127.0.0.1:0", upstream: echo}
  out: {listen: "127.0.0.1:0", socks5: {}, rules: [{host: api.example.com, port: 443, upstream: net}]}
`, keys.file("client.crt"), keys.file("client.key"), keys.file("ca.crt"), server.addr)
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	a := start(t, "run", "-c", path)
	a.metric("ambassador_ready", 1)

	page, _, err := get(a.process, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	lint := exec.Command("promtool", "check", "metrics")
	lint.Stdin = strings.NewReader(page)
	if out, err := lint.CombinedOutput(); err != nil || strings.Contains(string(out), "ambassador_") {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	rules := exec.Command("promtool", "test", "rules", "alerts_test.yml")
	rules.Dir = "../cmd/ambassador/assets"
	if out, err := rules.CombinedOutput(); err != nil {
		t.Errorf("promtool test rules: %v\n%s", err, out)
	}

	p := newPrometheus(t, a.addr("metrics"), printed(t, "alerts"))
	scraped := func(n float64) error { // before the first session, so that its series has a zero
		v, err := p.values("sum(count_over_time(ambassador_ready[1m]))")
		if err == nil && (len(v) == 0 || v[0] < n) {
			err = fmt.Errorf("%v scrapes, want %v", v, n)
		}
		return err
	}
	if err := eventually(patience, func() error { return scraped(2) }); err != nil {
		t.Fatal(err)
	}
	if err := visit(a); err != nil {
		t.Fatal(err)
	}
	t.Run("the first session is a rise", func(t *testing.T) {
		err := eventually(patience, func() error {
			v, err := p.values(`increase(ambassador_sessions_total{listener="in",reason="closed"}[30s])`)
			if err == nil && (len(v) == 0 || v[0] == 0) {
				err = fmt.Errorf("increase() is %v", v)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("no panel is empty", func(t *testing.T) {
		all := panels(t, printed(t, "dashboard"))
		if len(all) < 20 {
			t.Errorf("%d panels: the test looks in the wrong place", len(all))
		}
		for title, queries := range all {
			for _, q := range queries {
				err := eventually(patience, func() error {
					v, err := p.values(q)
					if err == nil && len(v) == 0 {
						err = fmt.Errorf("no value: %s", q)
						visitErr := visit(a) // a quantile is of recent sessions
						if visitErr != nil {
							return visitErr
						}
					}
					return err
				})
				if err != nil {
					t.Errorf("%s: %v", title, err)
				}
			}
		}
	})
	server.close()
	if err := os.WriteFile(path, []byte("nonsense: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.signal(syscall.SIGHUP)
	began := time.Now()
	for _, name := range []string{"AmbassadorUpstreamDown", "AmbassadorReloadFailed"} {
		if err := eventually(2*patience, func() error { return p.firing(name) }); err != nil {
			t.Error(err)
		}
		t.Logf("%s fires after %v", name, time.Since(began).Round(100*time.Millisecond))
	}
}
