package limits

import (
	"cmp"
	"slices"
	"time"

	"ambassador/policy"
)

// usualHold is how many bytes an ordinary client may hold.
const usualHold = 64 << 10

// Holder is a session, the bytes that it holds, and for how long it has held them.
type Holder[S any] struct {
	Session S
	From    policy.Source
	Bytes   int64
	Age     time.Duration
}

// Largest returns holders that together hold the given number of bytes. Each time it
// takes one from the source that holds most: the one that holds most, or, if all hold a
// usual amount, the one that has held it for the longest time. It reorders all.
func Largest[S any](all []Holder[S], bytes int64) (victims []Holder[S]) {
	slices.SortFunc(all, func(a, b Holder[S]) int {
		return cmp.Or(cmp.Compare(max(b.Bytes, usualHold), max(a.Bytes, usualHold)), cmp.Compare(b.Age, a.Age))
	})
	type share struct {
		bytes int64
		all   []Holder[S]
	}
	shares := map[policy.Source]*share{}
	for _, h := range all {
		s := shares[h.From]
		if s == nil {
			s = &share{}
			shares[h.From] = s
		}
		s.bytes, s.all = s.bytes+h.Bytes, append(s.all, h)
	}
	for bytes > 0 && len(victims) < len(all) {
		var most *share
		for _, s := range shares {
			if len(s.all) > 0 && (most == nil || s.bytes > most.bytes) {
				most = s
			}
		}
		h := most.all[0]
		most.bytes, most.all = most.bytes-h.Bytes, most.all[1:]
		bytes, victims = bytes-h.Bytes, append(victims, h)
	}
	return victims
}
