package l4

import (
	"errors"
	"strings"
	"testing"
	"time"

	"ambassador/l4/preface"
	"ambassador/l4/upstream"
)

// Client hints may ask for no more than the configuration allows.
func TestNarrow(t *testing.T) {
	set := upstream.ConnectConfig{Timeout: 5 * time.Second, AttemptTimeout: time.Second, Attempts: 2, Backoff: time.Millisecond}
	for _, tt := range []struct {
		name   string
		hints  preface.Hints
		c      upstream.ConnectConfig
		want   upstream.ConnectConfig
		refuse string
	}{
		{"nothing", preface.Hints{Tag: "x", NoPreconnect: true}, set, set, ""},
		{"nothing of nothing", preface.Hints{}, upstream.ConnectConfig{}, upstream.ConnectConfig{}, ""},
		{"less", preface.Hints{Attempts: 1, Timeout: time.Second}, set, upstream.ConnectConfig{Timeout: time.Second, AttemptTimeout: time.Second, Attempts: 1, Backoff: time.Millisecond}, ""},
		{"as much", preface.Hints{Attempts: 2, Timeout: 5 * time.Second}, set, set, ""},
		{"as much as the defaults", preface.Hints{Attempts: upstream.DefaultAttempts, Timeout: upstream.DefaultConnectTimeout}, upstream.ConnectConfig{},
			upstream.ConnectConfig{Attempts: upstream.DefaultAttempts, Timeout: upstream.DefaultConnectTimeout}, ""},
		{"more attempts", preface.Hints{Attempts: 3}, set, set, "attempts=3, and connect.attempts of the upstream allows 2"},
		{"more time", preface.Hints{Timeout: 6 * time.Second}, set, set, "timeout=6s, and connect.timeout of the upstream allows 5s"},
		{"more attempts than the default", preface.Hints{Attempts: upstream.DefaultAttempts + 1}, upstream.ConnectConfig{}, upstream.ConnectConfig{}, "allows 3"},
		{"more time than the default", preface.Hints{Timeout: upstream.DefaultConnectTimeout + 1}, upstream.ConnectConfig{}, upstream.ConnectConfig{}, "allows 10s"},
	} {
		got, err := narrow(tt.c, tt.hints)
		var bad *preface.Error
		switch {
		case got != tt.want:
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		case tt.refuse == "" && err != nil, tt.refuse != "" && (!errors.As(err, &bad) || !strings.Contains(err.Error(), tt.refuse)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.refuse)
		}
	}
}
