package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ambassador/cmd/ambassador/internal/config"
)

func printed(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"print"}, args...), strings.NewReader(""), &out, &errs)
	return out.String(), errs.String(), code
}

func TestPrint(t *testing.T) {
	list, _, code := printed(t)
	if code != 0 {
		t.Errorf("print: exit code %d", code)
	}
	for _, a := range assets() {
		want, err := os.ReadFile(filepath.Join("assets", a.file))
		if err != nil {
			t.Fatal(err)
		}
		if got, stderr, code := printed(t, strings.Split(a.name, "/")...); code != 0 || got != string(want) {
			t.Errorf("print %s: exit code %d, %d bytes, want %d: %s", a.name, code, len(got), len(want), stderr)
		}
		if !strings.Contains(list, "  "+a.name+" ") {
			t.Errorf("print does not list %s:\n%s", a.name, list)
		}
	}
	if _, stderr, code := printed(t, "alert"); code != 2 || !strings.Contains(stderr, `unknown file "alert"; use one of config, unit, instances, socket, alerts, dashboard, `) {
		t.Errorf("print alert: exit code %d: %s", code, stderr)
	}
	var out bytes.Buffer
	run(t.Context(), []string{"__complete", "print", ""}, strings.NewReader(""), &out, &out)
	if !strings.Contains(out.String(), "dashboard\t") {
		t.Errorf("completion: %s", &out)
	}
}

// TestPrintedConfig asserts that the printed configuration is right as it is, and with
// every optional key that it shows.
func TestPrintedConfig(t *testing.T) {
	text, _, _ := printed(t, "config")
	optional := regexp.MustCompile(`(?m)^( *)# ([a-z_]+: )`)
	if n := len(optional.FindAllString(text, -1)); n < 5 {
		t.Errorf("%d optional keys: the test looks in the wrong place", n)
	}
	for name, text := range map[string]string{"as it is": text, "complete": optional.ReplaceAllString(text, "$1$2")} {
		path := filepath.Join(t.TempDir(), "ambassador.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := (&config.Source{Path: path}).Load(os.LookupEnv); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAlertsAndDashboardNameMetricsThatExist: an alert on a metric that is gone never fires.
func TestAlertsAndDashboardNameMetricsThatExist(t *testing.T) {
	var names []string
	for _, m := range metricsInSource(t) {
		name, _, _ := strings.Cut(m, "{")
		names = append(names, name, name+"_bucket")
	}
	alerts, _, _ := printed(t, "alerts")
	dashboard, _, _ := printed(t, "dashboard")
	if !json.Valid([]byte(dashboard)) {
		t.Error("the dashboard is no JSON")
	}
	found := regexp.MustCompile(`\bambassador_[a-z_]+`).FindAllString(alerts+dashboard, -1)
	if len(found) < 30 {
		t.Errorf("%d metrics: the test looks in the wrong place", len(found))
	}
	for _, name := range found {
		if !slices.Contains(names, name) {
			t.Errorf("%s is no metric", name)
		}
	}
}

// TestUnitsAreAlike: ambassador@.service is ambassador.service with the instance's file and
// folders, and nothing else.
func TestUnitsAreAlike(t *testing.T) {
	body := func(name string) string {
		text, _, _ := printed(t, name)
		_, body, ok := strings.Cut(text, "\n[Unit]\n")
		if !ok {
			t.Fatalf("print %s has no [Unit]:\n%s", name, text)
		}
		return body
	}
	want := strings.NewReplacer("Ambassador:", "Ambassador %i:", "ambassador.yaml", "%i.yaml", "Directory=ambassador\n", "Directory=ambassador@%i\n").Replace(body("unit"))
	if diff := cmp.Diff(want, body("instances")); diff != "" {
		t.Error(diff)
	}
}
