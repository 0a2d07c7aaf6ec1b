package policy

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

var epoch = time.Unix(1e9, 0)

// script drives a breaker: each step is what happens, at a second, and the state
// after it.
type step struct {
	at   float64
	do   string // ok fail neutral: a whole attempt; permit, refused; settle N; pass, miss: a whole probe
	want BreakerState
}

type bench struct {
	t    *testing.T
	b    *Breaker
	open []Ticket // permitted, in order
}

func (s *bench) do(now time.Time, what string) {
	s.t.Helper()
	outcomes := map[string]Outcome{"ok": Success, "fail": Failure, "neutral": Neutral}
	var n int
	var how string
	switch {
	case what == "permit":
		ticket, _, ok := s.b.Permit(now)
		if !ok {
			s.t.Fatalf("at %v: not permitted", now.Sub(epoch))
		}
		s.open = append(s.open, ticket)
	case what == "refused":
		if _, _, ok := s.b.Permit(now); ok || s.b.Usable(now) {
			s.t.Fatalf("at %v: permitted", now.Sub(epoch))
		}
	case what == "pass":
		s.b.Probed(s.b.Watch(), Success, now, 0)
	case what == "miss":
		s.b.Probed(s.b.Watch(), Failure, now, 0)
	case scan(what, &n, &how):
		s.b.Settle(s.open[n], outcomes[how], now, 0)
	default:
		s.do(now, "permit")
		s.b.Settle(s.open[len(s.open)-1], outcomes[what], now, 0)
	}
}

func scan(what string, n *int, how *string) bool {
	_, err := fmt.Sscanf(what, "settle %d %s", n, how)
	return err == nil
}

func TestBreaker(t *testing.T) {
	cfg := BreakerConfig{Failures: 3, Open: 5 * time.Second, MaxOpen: 12 * time.Second, Probes: 2}
	tripped := []step{{0, "fail", Closed}, {0, "fail", Closed}, {0, "fail", Open}}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"opens after failures in a row", tripped},
		{"a success between counts from one again", []step{{0, "fail", Closed}, {0, "fail", Closed}, {0, "ok", Closed}, {0, "fail", Closed}, {0, "fail", Closed}}},
		{"neutral ends count for nothing", []step{{0, "fail", Closed}, {0, "fail", Closed}, {0, "neutral", Closed}, {0, "neutral", Closed}, {0, "fail", Open}}},
		{"open refuses until its time is over", append(slices.Clone(tripped), step{4.9, "refused", Open}, step{5, "permit", HalfOpen})},
		{"half-open permits its trials and no more", append(slices.Clone(tripped), step{5, "permit", HalfOpen}, step{5, "permit", HalfOpen}, step{5, "refused", HalfOpen})},
		{"a neutral trial makes room for another", append(slices.Clone(tripped), step{5, "permit", HalfOpen}, step{5, "permit", HalfOpen}, step{6, "settle 3 neutral", HalfOpen}, step{6, "permit", HalfOpen}, step{6, "refused", HalfOpen})},
		{"the first success closes it", append(slices.Clone(tripped), step{5, "permit", HalfOpen}, step{5, "ok", Closed}, step{5, "fail", Closed}, step{5, "settle 3 fail", Closed}, step{5, "fail", Closed})},
		{"the first failed trial opens it for twice as long", append(slices.Clone(tripped), step{5, "fail", Open}, step{14.9, "refused", Open}, step{15, "permit", HalfOpen})},
		{"and no longer than max_open", append(slices.Clone(tripped), step{5, "fail", Open}, step{15, "fail", Open}, step{26.9, "refused", Open}, step{27, "fail", Open}, step{39, "permit", HalfOpen})},
		{"success resets the open time", append(slices.Clone(tripped), step{5, "fail", Open}, step{15, "ok", Closed}, step{16, "fail", Closed}, step{16, "fail", Closed}, step{16, "fail", Open}, step{21, "permit", HalfOpen})},
		{"a failure that began before the trip is neutral", []step{{0, "permit", Closed}, {0, "fail", Closed}, {0, "fail", Closed}, {0, "fail", Open}, {5, "permit", HalfOpen}, {5, "settle 0 fail", HalfOpen}}},
		{"a success that began before the trip half-opens at once", []step{{0, "permit", Closed}, {0, "permit", Closed}, {0, "fail", Closed}, {0, "fail", Closed}, {0, "fail", Open}, {1, "settle 0 ok", HalfOpen}, {1, "settle 1 ok", Closed}}},
		{"failures that ran at the same time are one", []step{{0, "permit", Closed}, {0, "permit", Closed}, {0, "permit", Closed}, {0, "permit", Closed}, {3, "settle 0 fail", Closed}, {3, "settle 1 fail", Closed}, {3, "settle 2 fail", Closed}, {3, "settle 3 fail", Closed}, {3, "fail", Closed}, {3, "fail", Open}}},
		{"one that began before the last success is none", []step{{0, "permit", Closed}, {1, "ok", Closed}, {2, "fail", Closed}, {2, "fail", Closed}, {3, "settle 0 fail", Closed}, {3, "fail", Open}}},
		{"waves of failures at the same time open it, wave by wave", []step{{0, "permit", Closed}, {0, "permit", Closed}, {3, "settle 0 fail", Closed}, {3, "permit", Closed}, {3, "settle 1 fail", Closed}, {6, "settle 2 fail", Closed}, {6, "permit", Closed}, {9, "settle 3 fail", Open}}},
		{"a passed probe half-opens at once", append(slices.Clone(tripped), step{1, "pass", HalfOpen}, step{1, "ok", Closed})},
		{"a second one closes if no trial came", append(slices.Clone(tripped), step{1, "pass", HalfOpen}, step{2, "pass", Closed})},
		{"but not over a trial's head", append(slices.Clone(tripped), step{1, "pass", HalfOpen}, step{2, "permit", HalfOpen}, step{2, "pass", HalfOpen}, step{3, "settle 3 fail", Open})},
		{"a failed probe before the time changes nothing", append(slices.Clone(tripped), step{1, "miss", Open}, step{5, "permit", HalfOpen})},
		{"a failed probe is the trial when it is due", append(slices.Clone(tripped), step{5, "miss", Open}, step{14.9, "refused", Open}, step{15, "permit", HalfOpen})},
		{"probes say nothing while closed", []step{{0, "miss", Closed}, {0, "miss", Closed}, {0, "miss", Closed}, {0, "miss", Closed}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &bench{t: t, b: NewBreaker(cfg)}
			for i, st := range tt.steps {
				s.do(epoch.Add(time.Duration(st.at*float64(time.Second))), st.do)
				if got := s.b.State(); got != st.want {
					t.Fatalf("step %d, %s at %vs: %v, want %v", i, st.do, st.at, got, st.want)
				}
			}
		})
	}
}

// Settle reports which outcomes count, for other uses of them.
func TestSettleReportsWhatCounts(t *testing.T) {
	b := NewBreaker(BreakerConfig{Failures: 9})
	old, _, _ := b.Permit(epoch)
	older, _, _ := b.Permit(epoch)
	settle := func(name string, ticket Ticket, o Outcome, want bool) {
		t.Helper()
		if _, counted := b.Settle(ticket, o, epoch, 0); counted != want {
			t.Errorf("%s: counted %v, want %v", name, counted, want)
		}
	}
	settle("neutral", old, Neutral, false)
	settle("failure", old, Failure, true)
	settle("failure beside it", older, Failure, false)
	settle("success beside it", older, Success, true)
	settle("zero ticket", Ticket{}, Failure, true)
}

func TestChangedIsClosed(t *testing.T) {
	b := NewBreaker(BreakerConfig{Failures: 1, Open: time.Second})
	changed := b.Changed()
	ticket, _, _ := b.Permit(epoch)
	select {
	case <-changed:
		t.Fatal("told before a change")
	default:
	}
	b.Settle(ticket, Failure, epoch, 0)
	select {
	case <-changed:
	default:
		t.Fatal("not told of the opening")
	}
	select {
	case <-b.Changed():
		t.Fatal("told of the next change before it")
	default:
	}
}

func TestBreakerThatNeverOpens(t *testing.T) {
	for _, b := range []*Breaker{{}, NewBreaker(BreakerConfig{})} {
		for range 1000 {
			ticket, _, ok := b.Permit(epoch)
			if tr, _ := b.Settle(ticket, Failure, epoch, 0); !ok || tr.Changed() {
				t.Fatalf("permitted %v, %v", ok, tr)
			}
		}
	}
}

func TestTransitions(t *testing.T) {
	b := NewBreaker(BreakerConfig{Failures: 1, Open: time.Second})
	ticket, tr, _ := b.Permit(epoch)
	if tr.Changed() {
		t.Errorf("permit while closed: %v", tr)
	}
	if tr, _ = b.Settle(ticket, Failure, epoch, 0); tr != (Transition{Closed, Open}) {
		t.Errorf("trip: %v", tr)
	}
	if got := b.RetryAt(); !got.Equal(epoch.Add(time.Second)) {
		t.Errorf("retry at %v", got)
	}
	ticket, tr, _ = b.Permit(epoch.Add(time.Second))
	if tr != (Transition{Open, HalfOpen}) {
		t.Errorf("first trial: %v", tr)
	}
	if tr, _ = b.Settle(ticket, Success, epoch, 0); tr != (Transition{HalfOpen, Closed}) || !b.RetryAt().IsZero() {
		t.Errorf("success: %v, retry at %v", tr, b.RetryAt())
	}
}

// FuzzBreaker makes calls in any order, and checks the promises: no more trials than
// configured, open times within their bounds, and tickets that count once.
func FuzzBreaker(f *testing.F) {
	f.Add([]byte{0, 10, 0, 10, 0, 10, 0, 10, 3, 200, 0, 0, 1, 1})
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20})
	f.Fuzz(func(t *testing.T, events []byte) {
		cfg := BreakerConfig{Failures: 2, Open: 4 * time.Second, MaxOpen: 30 * time.Second, Probes: 2}
		m := &breakerModel{t: t, cfg: cfg, b: NewBreaker(cfg), now: epoch}
		for len(events) >= 2 {
			m.event(events[0]%8, int(events[1]))
			m.check()
			events = events[2:]
		}
	})
}

type breakerModel struct {
	t       *testing.T
	cfg     BreakerConfig
	b       *Breaker
	now     time.Time
	tickets []Ticket // not settled
}

func (m *breakerModel) event(kind byte, arg int) {
	jitter := float64(arg) / 256
	was := m.b.State()
	var tr Transition
	switch kind {
	case 0, 1, 2: // settle something as neutral, success, failure
		if len(m.tickets) > 0 {
			i := arg % len(m.tickets)
			tr, _ = m.b.Settle(m.tickets[i], Outcome(kind), m.now, jitter)
			m.tickets = slices.Delete(m.tickets, i, i+1)
		}
	case 3:
		m.now = m.now.Add(time.Duration(arg) * 100 * time.Millisecond)
	case 4:
		usable := m.b.Usable(m.now)
		ticket, changed, ok := m.b.Permit(m.now)
		if ok != usable {
			m.t.Fatalf("usable %v, permitted %v", usable, ok)
		}
		if tr = changed; ok {
			m.tickets = append(m.tickets, ticket)
		}
	case 5:
		tr = m.b.Probed(m.b.Watch(), Outcome(arg%3), m.now, jitter)
	case 6:
		tr, _ = m.b.Settle(Ticket{}, Failure, m.now, jitter)
		if tr.Changed() {
			m.t.Fatal("a zero ticket changed the breaker")
		}
	case 7: // another breaker replaces it, in which old tickets have no effect
		memory, ok := m.b.Memory(m.now)
		m.b, m.tickets = NewBreaker(m.cfg), nil
		if m.b.Recall(memory); ok != (was != Closed || memory.Failures+memory.Opened > 0) || memory.Open != (was != Closed) {
			m.t.Fatalf("was %v, remembers %v, %+v", was, ok, memory)
		}
		if again, _ := m.b.Memory(m.now); again != memory {
			m.t.Fatalf("knows %+v, want %+v", again, memory)
		}
	}
	if tr.Changed() && (tr.From != was || tr.To != m.b.State()) {
		m.t.Fatalf("was %v, is %v, told %v", was, m.b.State(), tr)
	}
}

func (m *breakerModel) check() {
	trials := 0
	for _, ticket := range m.tickets {
		if ticket.trial && ticket.generation == m.b.generation {
			trials++
		}
	}
	if trials > m.cfg.Probes || m.b.State() == HalfOpen && trials != m.b.trials {
		m.t.Fatalf("%d trials under way, the breaker counts %d", trials, m.b.trials)
	}
	if m.b.State() != Open {
		if at := m.b.RetryAt(); !at.IsZero() {
			m.t.Fatalf("%v and a retry at %v", m.b.State(), at)
		}
		return
	}
	if left := m.b.RetryAt().Sub(m.now); left > m.cfg.MaxOpen {
		m.t.Fatalf("open for %v more, max_open is %v", left, m.cfg.MaxOpen)
	}
	if m.b.RetryAt().IsZero() || !m.b.Usable(m.b.RetryAt()) {
		m.t.Fatal("open with no way out")
	}
}

func TestOpenTimes(t *testing.T) {
	c := BreakerConfig{Open: 5 * time.Second, MaxOpen: 30 * time.Second}
	for n, want := range []time.Duration{5, 10, 20, 30, 30} {
		want *= time.Second
		if got := c.openFor(n, 0); got != want {
			t.Errorf("openFor(%d, 0) = %v, want %v", n, got, want)
		}
		if got := c.openFor(n, 0.9999); got < want*79/100 || got > want*81/100 {
			t.Errorf("openFor(%d, 1) = %v, want 80%% of %v", n, got, want)
		}
	}
	if got := (&BreakerConfig{Open: 5 * time.Second}).openFor(7, 0); got != 5*time.Second {
		t.Errorf("without max_open: %v", got)
	}
}

func BenchmarkBreaker(b *testing.B) {
	br := NewBreaker(BreakerConfig{Failures: 5, Open: time.Second})
	b.ReportAllocs()
	for b.Loop() {
		if br.Usable(epoch) {
			ticket, _, _ := br.Permit(epoch)
			br.Settle(ticket, Success, epoch, 0)
		}
	}
}
