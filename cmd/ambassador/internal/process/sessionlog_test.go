package process

import (
	"slices"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/l4/outcome"
)

func TestLogSessions(t *testing.T) {
	records := []outcome.Record{{Reason: outcome.Closed}, {Reason: outcome.Probe}, {Reason: outcome.Refused}, {Reason: outcome.Internal}}
	for sessions, want := range map[string]string{
		config.LogAll:      "closed probe refused internal",
		config.LogNoProbes: "closed refused internal",
		config.LogFailures: "refused internal",
		config.LogNone:     "",
	} {
		f := &config.File{Listeners: []*config.ListenerSection{{Name: "other", LogSessions: config.LogNone}, {Name: "l", LogSessions: sessions}}}
		p := &Process{}
		p.logSessions.Store(logSessionsOf(f))
		var got []string
		for _, r := range records {
			if r.Listener = "l"; p.logs(&r) {
				got = append(got, string(r.Reason))
			}
		}
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: %v are logged, want %s", sessions, got, want)
		}
	}
	if p := (&Process{}); !p.logs(&outcome.Record{}) {
		t.Error("before the first configuration nothing is logged")
	}
}
