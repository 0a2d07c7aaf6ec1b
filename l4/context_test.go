package l4

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// The specification of the context grammar.
func TestParseContext(t *testing.T) {
	for _, tt := range []struct {
		text string
		want hints
		err  string
	}{
		{"", hints{}, ""},
		{"attempts=1", hints{attempts: 1}, ""},
		{"attempts=1,timeout=2s,no_preconnect=true,tag=job-7", hints{1, 2 * time.Second, true, "job-7"}, ""},
		{"tag=a=b,timeout=1m30s", hints{timeout: 90 * time.Second, tag: "a=b"}, ""},
		{" attempts=2 ,\ttag=x ", hints{attempts: 2, tag: "x"}, ""},
		{"no_preconnect=false", hints{}, ""},
		{"tag=" + strings.Repeat("x", 64), hints{tag: strings.Repeat("x", 64)}, ""},

		{"tag=" + strings.Repeat("x", 65), hints{}, "1 to 64 visible ASCII characters"},
		{"tag=", hints{}, "tag="},
		{"tag=a b", hints{}, "visible"},
		{"tag=\"a\"", hints{}, "visible"},
		{"tag=it's", hints{}, "visible"},
		{"tag=a+b", hints{}, "visible"},
		{"tag=a\nb", hints{}, `tag="a\nb"`},
		{"tag=ä", hints{}, "visible"},
		{"attempts=0", hints{}, "a number of 1 or more"},
		{"attempts=-1", hints{}, "a number of 1 or more"},
		{"attempts=+1", hints{}, "a number of 1 or more"},
		{"attempts=65536", hints{}, "a number of 1 or more"},
		{"attempts=1.5", hints{}, "a number of 1 or more"},
		{"attempts= 1", hints{}, "a number of 1 or more"},
		{"timeout=0s", hints{}, "a duration"},
		{"timeout=-1s", hints{}, "a duration"},
		{"timeout=2", hints{}, "a duration"},
		{"no_preconnect", hints{}, "no_preconnect has no value"},
		{"no_preconnect=yes", hints{}, "true or false"},
		{"attempts=1,attempts=1", hints{}, "attempts is there twice"},
		{"Attempts=1", hints{}, `"Attempts" is no key (the keys are attempts, timeout, no_preconnect, tag)`},
		{"attempts=1,", hints{}, `"" is no key`},
		{",", hints{}, `"" is no key`},
		{"=", hints{}, `"" is no key`},
		{"priority=1", hints{}, `"priority" is no key`},
		{"tag=" + strings.Repeat("x", 1021), hints{}, "1025 bytes, and the most is 1024"},
	} {
		got, err := parseContext(tt.text, ',')
		var bad *contextError
		switch {
		case got != tt.want:
			t.Errorf("%q: %+v, want %+v", tt.text, got, tt.want)
		case tt.err == "" && err != nil, tt.err != "" && (!errors.As(err, &bad) || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%q: %v, want %q", tt.text, err, tt.err)
		}
	}
	if got, err := parseContext("attempts=1+timeout=2s", '+'); err != nil || got != (hints{attempts: 1, timeout: 2 * time.Second}) {
		t.Errorf("behind a user's name: %+v, %v", got, err)
	}
	if _, err := parseContext("attempts=1+ timeout=2s", '+'); err == nil {
		t.Error("a blank within a user's name is taken")
	}
}

// What a client may ask for: less than the configuration allows.
func TestNarrow(t *testing.T) {
	set := ConnectConfig{Timeout: 5 * time.Second, AttemptTimeout: time.Second, Attempts: 2, Backoff: time.Millisecond}
	for _, tt := range []struct {
		name   string
		hints  hints
		c      ConnectConfig
		want   ConnectConfig
		refuse string
	}{
		{"nothing", hints{tag: "x", noPreconnect: true}, set, set, ""},
		{"nothing of nothing", hints{}, ConnectConfig{}, ConnectConfig{}, ""},
		{"less", hints{attempts: 1, timeout: time.Second}, set, ConnectConfig{time.Second, time.Second, 1, time.Millisecond}, ""},
		{"as much", hints{attempts: 2, timeout: 5 * time.Second}, set, set, ""},
		{"as much as the defaults", hints{attempts: DefaultAttempts, timeout: DefaultConnectTimeout}, ConnectConfig{},
			ConnectConfig{Attempts: DefaultAttempts, Timeout: DefaultConnectTimeout}, ""},
		{"more attempts", hints{attempts: 3}, set, set, "attempts=3, and connect.attempts of the upstream allows 2"},
		{"more time", hints{timeout: 6 * time.Second}, set, set, "timeout=6s, and connect.timeout of the upstream allows 5s"},
		{"more attempts than the default", hints{attempts: DefaultAttempts + 1}, ConnectConfig{}, ConnectConfig{}, "allows 3"},
		{"more time than the default", hints{timeout: DefaultConnectTimeout + 1}, ConnectConfig{}, ConnectConfig{}, "allows 10s"},
	} {
		got, err := tt.hints.narrow(tt.c)
		var bad *contextError
		switch {
		case got != tt.want:
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		case tt.refuse == "" && err != nil, tt.refuse != "" && (!errors.As(err, &bad) || !strings.Contains(err.Error(), tt.refuse)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.refuse)
		}
	}
}

// What is taken is within its bounds, and can be written down again.
func FuzzParseContext(f *testing.F) {
	for _, s := range []string{"attempts=1,timeout=2s,no_preconnect=true,tag=job-7", "", ",", "tag=\xff", "attempts=1,attempts=1", "a=b=c", "timeout=1h1m1.5s"} {
		f.Add(s, byte(','))
		f.Add(strings.ReplaceAll(s, ",", "+"), byte('+'))
	}
	f.Fuzz(func(t *testing.T, text string, sep byte) {
		if sep != ',' && sep != '+' {
			return
		}
		h, err := parseContext(text, sep)
		if err != nil {
			if h != (hints{}) {
				t.Errorf("%+v beside %v", h, err)
			}
			return
		}
		if h.attempts < 0 || h.timeout < 0 || len(h.tag) > maxTag || len(text) > maxContext {
			t.Errorf("%q: %+v", text, h)
		}
		if c, err := h.narrow(ConnectConfig{}); err == nil && (c.Attempts > DefaultAttempts || c.Timeout > DefaultConnectTimeout) {
			t.Errorf("%q widens: %+v", text, c)
		}
		if h.tag == "" {
			return
		}
		if again, err := parseContext("tag="+h.tag, sep); err != nil || again.tag != h.tag {
			t.Errorf("the tag %q is not one: %v", h.tag, err)
		}
	})
}
