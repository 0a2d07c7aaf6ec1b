package livetest

import (
	"context"
	"crypto/tls"
	"strings"
	"testing"

	"ambassador/l4/upstream"
)

// Two names may lead to one address. Each has a TLS configuration of its own.
func TestTwoHostsAtOneAddress(t *testing.T) {
	test := &tester{seen: map[string]*seen{}}
	watch := test.watch(func(host, _ string) (*tls.Config, error) { return &tls.Config{ServerName: host}, nil })
	for _, host := range []string{"a.test", "b.test", "a.test"} {
		cfg, err := watch(host, "127.0.0.1:1")
		if err != nil || cfg.ServerName != host {
			t.Errorf("%s: the name to verify is %q, %v", host, cfg.ServerName, err)
		}
	}
	if test.saw(keyOf("a.test", "127.0.0.1:1")) == test.saw(keyOf("b.test", "127.0.0.1:1")) {
		t.Error("the two hosts share what was seen")
	}
	twice := []upstream.Trial{{Endpoint: "a:1", Address: "127.0.0.1:1"}, {Endpoint: "b:1", Address: "127.0.0.1:1"}, {Endpoint: "a:1", Address: "127.0.0.1:1"}}
	if n := len(distinct(twice)); n != 2 {
		t.Errorf("%d trials, want 2", n)
	}
}

// The wait that the answer names is the one that was.
func TestTheAnswerNamesTheWait(t *testing.T) {
	test := &tester{}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for want, ctx := range map[string]context.Context{"said nothing for 1s, and": t.Context(), "said nothing until --timeout ended the test, and": ended} {
		if got := test.answer("", awaited(ctx)); !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
