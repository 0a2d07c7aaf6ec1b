package logs

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/l4/outcome"
)

func refusedRecord(cause string) *outcome.Record {
	return &outcome.Record{ID: "AB-1", Listener: "front", Client: "127.0.0.1:40000", Upstream: "db", Reason: outcome.Refused, Cause: cause}
}

// Each step is at a second, and either a failure with the first letter of its cause, or a look
// at the clock ("?"), or the end ("!").
func TestFold(t *testing.T) {
	for _, c := range []struct{ name, steps, want string }{
		{"once", "0a 10? 20?", "a"},
		{"again within the time", "0a 1a 2a 10?", "a a+2"},
		{"the count begins again", "0a 1a 10? 11a 12a 20?", "a a+1 a+2"},
		{"a failure that goes on is not printed in full again", "0a 9a 10? 19a 20?", "a a+1 a+1"},
		{"after a pause it is a new one", "0a 1a 10? 21a", "a a+1 a"},
		{"without repetition it is soon a new one", "0a 10a", "a a"},
		{"two kinds are counted apart", "0a 1b 2a 2b 3b 11?", "a b a+1 b+2"},
		{"each at its own time", "0a 5b 6a 6b 10? 15?", "a b a+1 b+1"},
		{"the end tells what was counted", "0a 1b 2a 3a 4!", "a b a+2"},
		{"nothing is told twice", "0a 2a 3! 4!", "a a+1"},
	} {
		var f fold
		var got []string
		counts := func(all []repeated) {
			for _, k := range all {
				got = append(got, fmt.Sprintf("%s+%d", k.cause, k.times))
			}
		}
		for step := range strings.FieldsSeq(c.steps) {
			var second int
			var what string
			fmt.Sscanf(step, "%d%s", &second, &what)
			now := cmdtest.Noon().Add(time.Duration(second) * time.Second)
			switch what {
			case "?":
				counts(f.due(now))
			case "!":
				counts(f.flush())
			default:
				first, forgotten := f.add(now, failureOf(refusedRecord(what)), "1")
				counts(forgotten)
				if first {
					got = append(got, what)
				}
			}
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%s: printed %q, want %q", c.name, text, c.want)
		}
	}
}

func TestFoldTellsWhenItIsDue(t *testing.T) {
	var f fold
	start := cmdtest.Noon()
	if f.add(start, failureOf(refusedRecord("a")), "1"); !f.next().IsZero() {
		t.Error("a failure that was not repeated waits for a count")
	}
	f.add(start.Add(time.Second), failureOf(refusedRecord("a")), "2")
	if got := f.next(); !got.Equal(start.Add(foldFor)) {
		t.Errorf("next is %v after the start", got.Sub(start))
	}
	if all := f.due(start.Add(foldFor)); len(all) != 1 || all[0].ref != "2" || !f.next().IsZero() {
		t.Errorf("due is %+v, next %v", all, f.next())
	}
}

// Failures of many kinds cost a bound of memory, and no count is lost.
func TestFoldIsBounded(t *testing.T) {
	var f fold
	printed, counts := 0, 0
	long := strings.Repeat("ü", maxFoldedCause)
	for round := range 3 {
		for i := range 4 * maxFolded {
			for range 2 {
				first, forgotten := f.add(cmdtest.Noon(), failureOf(refusedRecord(fmt.Sprint(i, " ", long))), "1")
				if first {
					printed++
				}
				for _, k := range forgotten {
					counts += k.times
				}
			}
		}
		if len(f.known) != maxFolded {
			t.Fatalf("round %d: %d failures are kept, want %d", round, len(f.known), maxFolded)
		}
	}
	for _, k := range f.flush() {
		counts += k.times
	}
	if all := 3 * 4 * maxFolded * 2; printed+counts != all {
		t.Errorf("%d printed and %d counted of %d", printed, counts, all)
	}
	if cause := failureOf(refusedRecord(long)).cause; len(cause) > maxFoldedCause+len("…") || !slices.Equal([]rune(cause), []rune(strings.ToValidUTF8(cause, "?"))) {
		t.Errorf("a cause of %d bytes is kept, %.20q", len(cause), cause)
	}
}

// The wait for the next attempt differs each time; the failure is the same.
func TestFoldIgnoresTheWaitInACause(t *testing.T) {
	at := func(wait time.Duration, what string) failure {
		r := refusedRecord(fmt.Sprintf("%s; the next attempt is in %v", what, wait))
		r.RetryIn = outcome.Seconds(wait)
		return failureOf(r)
	}
	if a, b := at(897*time.Millisecond, "open"), at(1200*time.Millisecond, "open"); a != b {
		t.Errorf("%+v and %+v are two failures", a, b)
	}
	if a, b := at(time.Second, "open"), at(time.Second, "closed"); a == b {
		t.Error("two failures are one")
	}
}

// What is refused for one cause, but to another destination, by another rule or for another
// user, is another failure.
func TestFoldKeepsDestinationsApart(t *testing.T) {
	const cause = "no rule of the listener allows it"
	first := failureOf(refusedRecord(cause))
	for name, change := range map[string]func(r *outcome.Record){
		"destination": func(r *outcome.Record) { r.Destination = "evil.example:443" },
		"endpoint":    func(r *outcome.Record) { r.Endpoint = "10.0.0.7:5432" },
		"rule":        func(r *outcome.Record) { r.Rule = "egress[1]" },
		"user":        func(r *outcome.Record) { r.User = "anna" },
	} {
		r := refusedRecord(cause)
		change(r)
		if failureOf(r) == first {
			t.Errorf("two failures with another %s are one", name)
		}
	}
	r := refusedRecord(cause)
	r.Client = "127.0.0.1:50000"
	if failureOf(r) != first {
		t.Error("the same failure of another connection is another failure")
	}
}
