package explain

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/policy"
)

// The values of expect.
const (
	expectAllow     = "allow"      // it is connected; a rule may report it
	expectWouldDeny = "would_deny" // it is connected, and reported
	expectDeny      = "deny"       // it is refused
)

func checkExpect(s string) error {
	if all := []string{expectAllow, expectWouldDeny, expectDeny}; !slices.Contains(all, s) {
		return fmt.Errorf("%q is none of %s", s, strings.Join(all, ", "))
	}
	return nil
}

// Mismatch says how the explanation differs from what the question expects; empty if it
// does not, or if nothing is expected.
func (e *Explanation) Mismatch(q *Question) string {
	if q.expect == "" {
		return ""
	}
	if e.LookupError != "" {
		return fmt.Sprintf("%s is expected, and %s; addr=IP tells the addresses", q.expect, e.resolution(q))
	}
	met := e.Reason != ""
	switch q.expect {
	case expectAllow:
		met = e.Reason == ""
	case expectWouldDeny:
		met = e.Reason == "" && e.Verdict == policy.WouldDeny
	}
	if met {
		return ""
	}
	text := fmt.Sprintf("%s is expected; %s", q.expect, e.verdict())
	if e.Verdict != policy.Deny && e.Verdict != policy.NoRule && e.Reason != "" {
		text += fmt.Sprintf(", but refused (%s)", e.Reason)
	}
	return text
}

// Tests asks the questions of a file of tests about f. The problems are the questions
// that make no sense, and failed are the tests that did not pass; both have their place.
func Tests(ctx context.Context, f *config.File, tests []config.PolicyTest) (failed, problems []config.Problem) {
	for _, t := range tests {
		at := t.Place
		q, err := Ask(f, t.Question)
		var e Explanation
		if err == nil {
			e, err = q.Answer(ctx)
		}
		if err != nil {
			at.Text = err.Error()
			problems = append(problems, at)
		} else if at.Text = e.Mismatch(q); at.Text != "" {
			at.Text = t.Question + ": " + at.Text
			failed = append(failed, at)
		}
	}
	return failed, problems
}
