package config

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

func TestTracing(t *testing.T) {
	for text, want := range map[string]string{
		`{otlp: "http://127.0.0.1:4318", logs: true}`:   "",
		`{otlp: "https://otel.internal", logs: true}`:   "",
		`{otlp: "127.0.0.1:4318", logs: true}`:          "tracing.otlp: not a URL of a collector; use http://HOST:4318",
		`{otlp: "http://u:p@h:4318", logs: true}`:       "OTEL_EXPORTER_OTLP_HEADERS passes credentials",
		`{otlp: "http://127.0.0.1:4318"}`:               "",
		`{otlp: "http://127.0.0.1:4318", sample: 1}`:    "",
		`{otlp: "http://127.0.0.1:4318", sample: .25}`:  "",
		`{otlp: "http://127.0.0.1:4318", sample: 2}`:    `:1:50: tracing.sample: "2" is no number from 0 to 1; 0.01 is one in a hundred`,
		`{otlp: "http://127.0.0.1:4318", sample: -0.1}`: `tracing.sample: "-0.1" is no number from 0 to 1`,
		`{otlp: "http://127.0.0.1:4318", sample: 10%}`:  `tracing.sample: "10%" is no number from 0 to 1`,
		`{otlp: "http://127.0.0.1:4318", sample: .nan}`: `tracing.sample: ".nan" is no number from 0 to 1`,
		`{otlp: "http://127.0.0.1:4318", sample: NaN}`:  `tracing.sample: "NaN" is no number from 0 to 1`,
		`{sample: 0.5}`:                                    "tracing.sample: there is no collector; give otlp: http://127.0.0.1:4318",
		`{otlp: "127.0.0.1:4318", sample: 1}`:              "tracing.otlp: not a URL of a collector; use http://HOST:4318",
		`{otlp: "h:4318", sample: 1}`:                      "tracing.otlp: not a URL of a collector; use http://HOST:4318",
		`{logs: true}`:                                     "tracing.logs: there is no collector; give otlp: http://127.0.0.1:4318",
		`{otlp: "http://127.0.0.1:4318/?a=b", logs: true}`: "without user, query and fragment",
	} {
		path := filepath.Join(t.TempDir(), "a.yaml")
		file := "tracing: " + text + "\nupstreams: {u: {endpoints: [\"127.0.0.1:1\"]}}\nlisteners: {l: {listen: \"127.0.0.1:0\", upstream: u}}\n"
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := (&Source{Path: path}).Load(os.LookupEnv)
		switch {
		case err == nil && want == "" && !reaches(f):
			t.Errorf("%s: not what the server gets", text)
		case want == "" && (err != nil || f.Tracing.OTLP == ""):
			t.Errorf("%s: %v", text, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// A wrong URL is one mistake, whatever else is below tracing.
func TestOTLPIsTheBaseURL(t *testing.T) {
	for url, mistakes := range map[string]int{"http://h:4318/v1/traces": 1, "https://h/v1/logs/": 1, "http://h:4318/prefix": 0, "http://h:4318/": 0, "h:4318": 1} {
		text := "tracing: {otlp: \"" + url + "\", sample: 1, logs: true}\nupstreams: {u: {endpoints: [\"127.0.0.1:1\"]}}\nlisteners: {l: {listen: \"127.0.0.1:0\", upstream: u}}\n"
		_, err := Parse("a.yaml", "/", []byte(text), os.LookupEnv)
		var all *Error
		errors.As(err, &all)
		if mistakes == 0 && err != nil || mistakes > 0 && (all == nil || len(all.Problems) != mistakes || !strings.Contains(err.Error(), "without /v1/traces or /v1/logs")) {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestDoubtsOfTracing(t *testing.T) {
	for _, c := range []struct{ tracing, listener, want string }{
		{`{otlp: "http://h:4317", sample: 1}`, "", "tracing.otlp: collectors speak gRPC at port 4317, and OTLP/HTTP is sent; the port for that is 4318"},
		{`{otlp: "http://h:4318"}`, "", "tracing.otlp: nothing is sent; set sample: 0.01 or logs: true, or context: true of a listener whose clients name a trace"},
		{`{otlp: "http://h:4318"}`, "http_connect: {}\ncontext: true", "tracing.otlp: only sessions whose client names a trace are sent; set sample: 0.01 or logs: true for others"},
		{`{otlp: "http://h:4318", logs: true}`, "", ""},
		{`{otlp: "http://h:4318", sample: 0.1}`, "", ""},
	} {
		text := cmdtest.Ruled(cmp.Or(c.listener, "http_connect: {}"), cmdtest.AllowAll) + "\ntracing: " + c.tracing + "\n"
		f, err := Parse("a.yaml", "/", []byte(text), os.LookupEnv)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(slices.DeleteFunc(f.Doubts(), func(d string) bool { return !strings.HasPrefix(d, "tracing") }), "\n"); got != c.want {
			t.Errorf("%s%s: %q, want %q", c.tracing, c.listener, got, c.want)
		}
	}
}

// reaches reports whether the server is told of the collector and the share.
func reaches(f *File) bool {
	cfg, err := f.ServerConfig(noParts())
	return err == nil && cfg.Tracing.On && cfg.Tracing.Sample == f.Tracing.Sample
}
