package relay

import "sync/atomic"

// Budget counts the bytes that are held for clients: by an engine for sides that
// do not accept them, and by other users who add to it. It is safe for concurrent
// use; a nil Budget counts nothing.
type Budget struct {
	// Over, if not nil, is called whenever the budget is exceeded. It must not block.
	// Static before the first use.
	Over func()

	limit, used atomic.Int64
}

// SetLimit sets the limit, in bytes; 0: no limit.
func (b *Budget) SetLimit(n int64) { b.limit.Store(n) }

// Limit is the limit, in bytes; 0: none.
func (b *Budget) Limit() int64 { return b.limit.Load() }

// Used is how many bytes are held.
func (b *Budget) Used() int64 { return b.used.Load() }

// Add adds n bytes; a negative n releases them.
func (b *Budget) Add(n int64) {
	if b == nil || n == 0 {
		return
	}
	used := b.used.Add(n)
	if limit := b.limit.Load(); n > 0 && limit > 0 && used > limit && b.Over != nil {
		b.Over()
	}
}

// tight reports whether so much of the budget is used that less should be read at
// once for a side that may not accept it.
func (b *Budget) tight() bool {
	if b == nil {
		return false
	}
	limit := b.limit.Load()
	return limit > 0 && b.used.Load() > limit/2
}

// tightRead is how much is read at once for another side while the budget is
// tight: the size of a TLS record.
const tightRead = 16 << 10
