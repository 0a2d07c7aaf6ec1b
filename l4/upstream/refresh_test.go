package upstream

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/outcome"
	"ambassador/policy"
)

// The addresses of a name that does not exist any more are dropped after a time; other
// failures keep them.
func TestExpire(t *testing.T) {
	notFound := error(&net.DNSError{IsNotFound: true})
	silent := error(&net.DNSError{IsTimeout: true})
	type lookup struct {
		after time.Duration // the first lookup
		err   error
	}
	for _, tt := range []struct {
		name    string
		keep    time.Duration
		lookups []lookup
		dropped bool // by the last lookup
	}{
		{"too early", 30 * time.Second, []lookup{{0, notFound}, {29 * time.Second, notFound}}, false},
		{"in time", 30 * time.Second, []lookup{{0, notFound}, {30 * time.Second, notFound}}, true},
		{"at once", 0, []lookup{{0, notFound}}, true},
		{"wrapped", 0, []lookup{{0, errors.Join(errors.New("x"), notFound)}}, true},
		{"silent servers", 0, []lookup{{0, silent}, {time.Hour, silent}}, false},
		{"silent for a time", 30 * time.Second, []lookup{{0, notFound}, {20 * time.Second, silent}, {30 * time.Second, notFound}}, true},
		{"back for a time", 30 * time.Second, []lookup{{0, notFound}, {20 * time.Second, nil}, {31 * time.Second, notFound}}, false},
	} {
		u := testUpstream(t, "db.test:1")
		e, start := u.endpoints[0], time.Unix(1e9, 0)
		u.learned(e, placesOf("10.0.0.1:1"))
		for i, l := range tt.lookups {
			want := ""
			if tt.dropped && i == len(tt.lookups)-1 {
				want = "10.0.0.1:1"
			}
			e.mu.Lock()
			if got := e.expire(l.err, start.Add(l.after), tt.keep); got != want {
				t.Errorf("%s: after %v %q is dropped, want %q", tt.name, l.after, got, want)
			}
			e.mu.Unlock()
		}
		if st := e.status(); (len(st.Addresses) == 0) != tt.dropped {
			t.Errorf("%s: %+v", tt.name, st)
		}
	}
}

func TestUntilDropped(t *testing.T) {
	u := testUpstream(t, "db.test:1")
	e, now := u.endpoints[0], time.Unix(1e9, 0)
	if got := e.untilDropped(now, time.Minute); got < time.Hour {
		t.Errorf("a name that exists: %v", got)
	}
	u.learned(e, placesOf("10.0.0.1:1"))
	e.expire(&net.DNSError{IsNotFound: true}, now, time.Minute)
	if got := e.untilDropped(now.Add(20*time.Second), time.Minute); got != 40*time.Second {
		t.Errorf("a name that is gone: %v, want 40s", got)
	}
	for configured, want := range map[time.Duration]time.Duration{0: DefaultKeepGone, -1: 0, time.Minute: time.Minute} {
		if got := (&Config{KeepGone: configured}).keepGone(); got != want {
			t.Errorf("KeepGone %v means %v, want %v", configured, got, want)
		}
	}
}

// An answer without the addresses of one family keeps those that are known.
func TestPartialAnswersKeepTheOtherFamily(t *testing.T) {
	u := testUpstream(t, "db.test:1")
	e := u.endpoints[0]
	u.learned(e, placesOf("10.0.0.1:1", "[2001:db8::1]:1"))
	partial := placesOf("10.0.0.2:1")
	partial.Partial = true
	u.learned(e, partial)
	if got := namesOf(u.members()); got != "10.0.0.2:1 [2001:db8::1]:1" {
		t.Errorf("after a partial answer: %s", got)
	}
	u.learned(e, placesOf("10.0.0.2:1"))
	if got := namesOf(u.members()); got != "10.0.0.2:1" {
		t.Errorf("after a complete answer: %s", got)
	}
}

// A failure asks for a lookup, unless the last result of another address was good.
func TestFailuresAskForALookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := testUpstream(t, "db.test:1")
		e := u.endpoints[0]
		u.learned(e, placesOf("10.0.0.1:1", "10.0.0.2:1"))
		a, b := u.members()[0].Address, u.members()[1].Address
		settle := func(a *Address, verdict policy.Outcome) {
			ticket, _, _ := a.breaker.Permit(time.Now())
			reason := outcome.OK
			if verdict == policy.Failure {
				reason = outcome.Refused
			}
			u.settled(a.candidate(ticket, time.Now()), reason, errors.New("refused"), verdict)
		}
		asked := func() bool { return e.awaitRequest(context.Background(), 0) }
		settle(a, policy.Success)
		settle(b, policy.Failure)
		if asked() {
			t.Error("one address of two failed, and a lookup was asked for")
		}
		settle(a, policy.Failure)
		settle(a, policy.Failure)
		if !asked() || asked() {
			t.Error("both addresses failed, and not one lookup was asked for")
		}
		u.judge(a, true, "", time.Now())
		u.judge(b, false, "", time.Now())
		if asked() {
			t.Error("a probe of one address failed, and a lookup was asked for")
		}
		u.judge(a, false, "", time.Now())
		if !asked() {
			t.Error("no lookup was asked for after the probes failed")
		}
	})
}
