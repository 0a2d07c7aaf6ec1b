package logs

import (
	"slices"
	"strings"
	"time"

	"ambassador/l4/outcome"
)

const (
	// foldFor is how long the repetitions of a failure are counted before a line says how
	// many there were.
	foldFor = 10 * time.Second
	// maxFolded bounds the failures that are remembered, and maxFoldedCause the part of a
	// cause, and of a name, that distinguishes them, in bytes: a few hundred KiB in all at most.
	maxFolded      = 64
	maxFoldedCause = 512
)

// failure is what repetitions of a failure have in common. A second destination that is
// refused for the same cause is another failure, and so is a second user.
type failure struct {
	listener, upstream string
	target, rule, user string
	reason             outcome.Reason
	cause              string
}

// failureOf copies what it keeps. A wait that a cause names is left out: it differs each
// time.
func failureOf(r *outcome.Record) failure {
	cause := headOf(r.Cause)
	if r.RetryIn != 0 {
		cause = strings.Replace(cause, time.Duration(r.RetryIn).String(), "", 1)
	}
	return failure{
		listener: r.Listener, upstream: r.Upstream, rule: r.Rule, reason: r.Reason,
		target: strings.Clone(headOf(target(r))), user: strings.Clone(headOf(r.User)), cause: strings.Clone(cause),
	}
}

// headOf is what of a text is kept.
func headOf(cause string) string {
	if len(cause) <= maxFoldedCause {
		return cause
	}
	return strings.ToValidUTF8(cause[:maxFoldedCause], "") + "…"
}

// repeated is a failure and how often it was seen again since the line of the first one, or
// since the last line with a count.
type repeated struct {
	failure
	what  string // the failure in words
	since time.Time
	times int
	ref   string // what `why` is asked for the last one; may be empty
}

// fold decides which failures of sessions are printed and which are counted. It prints
// nothing and reads no clock. The zero value is ready.
type fold struct {
	known []repeated // oldest since first, at most maxFolded
}

// add takes a failure. It returns whether to print it, and what to print before: the count
// of a failure that is forgotten, because there are too many.
func (f *fold) add(now time.Time, what failure, ref string) (first bool, forgotten []repeated) {
	f.forget(now)
	for i := range f.known {
		if k := &f.known[i]; k.failure == what {
			k.times, k.ref = k.times+1, ref
			return false, nil
		}
	}
	if len(f.known) == maxFolded {
		forgotten = counted(f.known[:1])
		f.known = slices.Delete(f.known, 0, 1)
	}
	f.known = append(f.known, repeated{failure: what, since: now})
	return true, forgotten
}

// describe sets the words of the failure that was added last.
func (f *fold) describe(what string) { f.known[len(f.known)-1].what = what }

// forget drops failures that were not repeated for foldFor.
func (f *fold) forget(now time.Time) {
	f.known = slices.DeleteFunc(f.known, func(k repeated) bool { return k.times == 0 && now.Sub(k.since) >= foldFor })
}

// due returns the repetitions whose count is to be printed now. Their counts begin again.
func (f *fold) due(now time.Time) (out []repeated) {
	f.forget(now)
	var later []repeated
	for _, k := range f.known {
		if now.Sub(k.since) < foldFor {
			later = append(later, k)
			continue
		}
		out = append(out, k)
	}
	for _, k := range out {
		k.since, k.times = now, 0
		later = append(later, k)
	}
	f.known = later
	return out
}

// next returns when due has something to return; zero: not before the next add.
func (f *fold) next() (at time.Time) {
	for _, k := range f.known {
		if end := k.since.Add(foldFor); k.times > 0 && (at.IsZero() || end.Before(at)) {
			at = end
		}
	}
	return at
}

// flush forgets all failures, and returns those with a count that was not printed.
func (f *fold) flush() []repeated {
	out := counted(f.known)
	f.known = nil
	return out
}

func counted(all []repeated) (out []repeated) {
	for _, k := range all {
		if k.times > 0 {
			out = append(out, k)
		}
	}
	return out
}
