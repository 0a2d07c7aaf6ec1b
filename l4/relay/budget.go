package relay

import "sync/atomic"

// Budget counts the bytes that are held for clients: by an engine for sides that do
// not take them, and by others who add to it. It is safe for concurrent use; a nil
// Budget counts nothing.
type Budget struct {
	// Over is called whenever the budget is exceeded, and must not block. Nil: nobody
	// is told. Static before the first use.
	Over func()

	limit, used atomic.Int64
}

// SetLimit bounds the budget from now on, in bytes; 0 is no bound.
func (b *Budget) SetLimit(n int64) { b.limit.Store(n) }

// Limit is the bound, in bytes; 0: none.
func (b *Budget) Limit() int64 { return b.limit.Load() }

// Used is how many bytes are held.
func (b *Budget) Used() int64 { return b.used.Load() }

// Add takes n bytes, or gives them back where n is negative.
func (b *Budget) Add(n int64) {
	if b == nil || n == 0 {
		return
	}
	used := b.used.Add(n)
	if limit := b.limit.Load(); n > 0 && limit > 0 && used > limit && b.Over != nil {
		b.Over()
	}
}

// tight says whether so much of the budget is used that sides which do not take
// their bytes should be given less at once.
func (b *Budget) tight() bool {
	if b == nil {
		return false
	}
	limit := b.limit.Load()
	return limit > 0 && b.used.Load() > limit/2
}

// tightRead is what is read at once for another side while the budget is tight: a
// record of TLS has no more.
const tightRead = 16 << 10
