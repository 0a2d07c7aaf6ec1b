package outcome

import (
	"strings"
	"sync"
)

// recentRecords is how many ended sessions are kept for the command why. At about 200
// bytes each they take 0.8 MB.
const recentRecords = 4096

const recordText = 16 << 10 // bytes; about a hundred records

// Recent is a ring of the last ended sessions. Its functions may be called from several
// goroutines. Records are copied into memory of their own. Otherwise each one would keep
// its page in use, and that page is full of what the session has left behind.
type Recent struct {
	mu      sync.Mutex
	records []Packed        // guarded by mu; grows to recentRecords as sessions end
	next    int             // guarded by mu; index for the next record, the oldest one once the ring is full
	text    strings.Builder // guarded by mu; the newest records; never grown while records refer to it
}

// Add keeps a copy of a record, in place of the oldest one if the ring is full.
func (r *Recent) Add(rec *Record) {
	packed := rec.appendTo(make([]byte, 0, maxOnStack))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == len(r.records) {
		r.records = append(r.records, "")
	}
	r.records[r.next] = r.keep(packed)
	r.next = (r.next + 1) % recentRecords
}

// keep copies a record into the ring's memory. mu is held.
func (r *Recent) keep(p []byte) Packed {
	if r.text.Cap()-r.text.Len() < len(p) {
		r.text.Reset() // the old text stays as long as records refer to it
		r.text.Grow(max(recordText, len(p)))
	}
	from := r.text.Len()
	r.text.Write(p)
	return Packed(r.text.String()[from:])
}

// List returns the n newest records, or all, the newest first.
func (r *Recent) List(n int) []Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	count := len(r.records)
	n = min(n, count)
	out := make([]Record, 0, n)
	for i := range n {
		out = append(out, r.records[(r.next+count-1-i)%count].Unpack())
	}
	return out
}
