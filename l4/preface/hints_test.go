package preface

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// The specification of the grammar of hints.
func TestParseHints(t *testing.T) {
	for _, tt := range []struct {
		text string
		want Hints
		err  string
	}{
		{"", Hints{}, ""},
		{"attempts=1", Hints{Attempts: 1}, ""},
		{"attempts=1,timeout=2s,no_preconnect=true,tag=job-7", Hints{Attempts: 1, Timeout: 2 * time.Second, NoPreconnect: true, Tag: "job-7"}, ""},
		{"tag=a=b,timeout=1m30s", Hints{Timeout: 90 * time.Second, Tag: "a=b"}, ""},
		{" attempts=2 ,\ttag=x ", Hints{Attempts: 2, Tag: "x"}, ""},
		{"no_preconnect=false", Hints{}, ""},
		{"tag=" + strings.Repeat("x", 64), Hints{Tag: strings.Repeat("x", 64)}, ""},

		{"tag=" + strings.Repeat("x", 65), Hints{}, "1 to 64 visible ASCII characters"},
		{"tag=", Hints{}, "tag="},
		{"tag=a b", Hints{}, "visible"},
		{"tag=\"a\"", Hints{}, "visible"},
		{"tag=it's", Hints{}, "visible"},
		{"tag=a+b", Hints{}, "visible"},
		{"tag=a\nb", Hints{}, `tag="a\nb"`},
		{"tag=ä", Hints{}, "visible"},
		{"attempts=0", Hints{}, "a number of 1 or more"},
		{"attempts=-1", Hints{}, "a number of 1 or more"},
		{"attempts=+1", Hints{}, "a number of 1 or more"},
		{"attempts=65536", Hints{}, "a number of 1 or more"},
		{"attempts=1.5", Hints{}, "a number of 1 or more"},
		{"attempts= 1", Hints{}, "a number of 1 or more"},
		{"timeout=0s", Hints{}, "a duration"},
		{"timeout=-1s", Hints{}, "a duration"},
		{"timeout=2", Hints{}, "a duration"},
		{"no_preconnect", Hints{}, "no_preconnect has no value"},
		{"no_preconnect=yes", Hints{}, "true or false"},
		{"attempts=1,attempts=1", Hints{}, "attempts is there twice"},
		{"Attempts=1", Hints{}, `"Attempts" is no key (the keys are attempts, timeout, no_preconnect, traceparent, tag)`},
		{"attempts=1,", Hints{}, `"" is no key`},
		{",", Hints{}, `"" is no key`},
		{"=", Hints{}, `"" is no key`},
		{"priority=1", Hints{}, `"priority" is no key`},
		{"tag=" + strings.Repeat("x", 1021), Hints{}, "1025 bytes, and the most is 1024"},
	} {
		got, err := parseHints(tt.text, ',')
		var bad *Error
		switch {
		case got != tt.want:
			t.Errorf("%q: %+v, want %+v", tt.text, got, tt.want)
		case tt.err == "" && err != nil, tt.err != "" && (!errors.As(err, &bad) || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%q: %v, want %q", tt.text, err, tt.err)
		}
	}
	if got, err := parseHints("attempts=1+timeout=2s", '+'); err != nil || got != (Hints{Attempts: 1, Timeout: 2 * time.Second}) {
		t.Errorf("behind a user's name: %+v, %v", got, err)
	}
	if _, err := parseHints("attempts=1+ timeout=2s", '+'); err == nil {
		t.Error("a blank within a user's name is taken")
	}
}

// What is taken is within its bounds, and can be written down again.
func FuzzParseHints(f *testing.F) {
	for _, s := range []string{"attempts=1,timeout=2s,no_preconnect=true,tag=job-7", "", ",", "tag=\xff", "attempts=1,attempts=1", "a=b=c", "timeout=1h1m1.5s"} {
		f.Add(s, byte(','))
		f.Add(strings.ReplaceAll(s, ",", "+"), byte('+'))
	}
	f.Fuzz(func(t *testing.T, text string, sep byte) {
		if sep != ',' && sep != '+' {
			return
		}
		h, err := parseHints(text, sep)
		if err != nil {
			if h != (Hints{}) {
				t.Errorf("%+v beside %v", h, err)
			}
			return
		}
		if h.Attempts < 0 || h.Timeout < 0 || len(h.Tag) > maxTag || len(text) > maxHints {
			t.Errorf("%q: %+v", text, h)
		}
		if err := h.Within(3, 10*time.Second); err == nil && (h.Attempts > 3 || h.Timeout > 10*time.Second) {
			t.Errorf("%q asks for more: %+v", text, h)
		}
		if h.Tag == "" {
			return
		}
		if again, err := parseHints("tag="+h.Tag, sep); err != nil || again.Tag != h.Tag {
			t.Errorf("the tag %q is not one: %v", h.Tag, err)
		}
	})
}
