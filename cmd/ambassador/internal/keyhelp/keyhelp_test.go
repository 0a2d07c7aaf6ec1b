package keyhelp_test

import (
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/keyhelp"
)

// A key without what is above it is found by its end.
func TestKeysElsewhere(t *testing.T) {
	for path, want := range map[string]string{
		"otlp":             "the configuration has no key \"otlp\"; did you mean tracing.otlp?",
		"health.intervall": "the configuration has no key \"health.intervall\"; did you mean upstreams.health.interval?",
		"helth.interval":   "did you mean upstreams.health.interval?",
		"upstreems":        "the configuration has no key \"upstreems\"; did you mean upstreams?",
		"tracing.otlpp":    "tracing has no key \"otlpp\"; did you mean tracing.otlp?",
		"nothing_like_it":  "the configuration has no key \"nothing_like_it\"; it has ",
	} {
		_, err := keyhelp.Find(config.Schema, path)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
}
