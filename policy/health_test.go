package policy

import (
	"strings"
	"testing"
	"time"
)

func TestHealthFold(t *testing.T) {
	for _, tt := range []struct {
		name, checks string // + passed, - failed
		want         string // the verdict after each: ? unknown, h healthy, u unhealthy
	}{
		{"one is enough at first", "+", "h"},
		{"falls after three", "+---", "hhhu"},
		{"a pass between starts over", "+--+--+", "hhhhhhh"},
		{"rises after two", "+---++", "hhhuuh"},
		{"a failure between starts over", "+---+-++", "hhhuuuuh"},
		{"never seen and failing", "---", "??u"},
		{"never seen, a failure, then a pass", "-+", "?h"},
		{"more of the same", "+++-++---", "hhhhhhhhu"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var h HealthFold
			cfg, got, changes := HealthConfig{Rise: 2, Fall: 3}, "", 0
			for i, c := range tt.checks {
				now := epoch.Add(time.Duration(i) * time.Second)
				if was := h.Fold(cfg, c == '+', "broken", now); was != h.Verdict() {
					changes++
					if !h.Since().Equal(now) {
						t.Errorf("since %v after a change at %v", h.Since(), now)
					}
				}
				got += map[Health]string{Unknown: "?", Healthy: "h", Unhealthy: "u"}[h.Verdict()]
			}
			if got != tt.want {
				t.Errorf("%s gives %s, want %s", tt.checks, got, tt.want)
			}
			if cause, at := h.LastFailure(); (cause != "") != strings.Contains(tt.checks, "-") || at.IsZero() == (cause != "") {
				t.Errorf("last failure %q at %v", cause, at)
			}
		})
	}
}

func TestHealthForgotten(t *testing.T) {
	var h HealthFold
	h.Fold(HealthConfig{}, false, "x", epoch)
	if h.Verdict() != Unhealthy {
		t.Fatal("a zero config falls at once")
	}
	h.Forget(epoch.Add(time.Second))
	if h.Verdict() != Unknown || !h.Since().Equal(epoch.Add(time.Second)) {
		t.Errorf("%v since %v", h.Verdict(), h.Since())
	}
}
