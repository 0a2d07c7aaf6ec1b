package outcome

import (
	"encoding/binary"
	"sync"
	"time"
)

// Account is the record of a live session, which is packed while nothing of it changes.
// The zero value has an empty record.
// It is not for several goroutines at once, but for Start.
type Account struct {
	start  time.Time
	record *Record // nil: packed has it
	packed Packed
	trace  *Trace // the record's
}

// NewAccount returns an account that begins with the record.
func NewAccount(r Record) Account {
	return Account{start: r.Start, record: newRecord(r), trace: r.Trace}
}

// Start returns the record's Start.
func (a *Account) Start() time.Time { return a.start }

// Trace returns the record's Trace.
func (a *Account) Trace() *Trace { return a.trace }

// Join sets the record's Trace.
func (a *Account) Join(t *Trace) { a.trace, a.Record().Trace = t, t }

// Record returns the record, to read it and to change it until Pack is called.
func (a *Account) Record() *Record {
	if a.record == nil {
		a.record = free.Get().(*Record)
		a.copyTo(a.record)
		a.packed = ""
	}
	return a.record
}

// Copy returns a copy of the record. A packed one stays packed.
func (a *Account) Copy() Record {
	if a.record != nil {
		return *a.record
	}
	var r Record
	a.copyTo(&r)
	return r
}

// copyTo is Copy of a packed record into an empty one.
func (a *Account) copyTo(r *Record) {
	if a.packed != "" {
		a.packed.unpackTo(r)
	}
	r.Start, r.Trace = a.start, a.trace // with the monotonic clock, and with the phases
}

// Pack packs the record until Record is called. It is for another account then.
func (a *Account) Pack() {
	r := a.Record()
	a.packed, a.record = r.Pack(), nil
	*r = Record{}
	free.Put(r)
}

// free are records that no account has.
var free = sync.Pool{New: func() any { return new(Record) }}

func newRecord(r Record) *Record {
	to := free.Get().(*Record)
	*to = r
	return to
}

// Bytes returns the record's BytesUp and BytesDown.
func (a *Account) Bytes() (up, down int64) {
	if a.record != nil {
		return a.record.BytesUp, a.record.BytesDown
	}
	if a.packed == "" {
		return 0, 0
	}
	return a.packed.bytes()
}

// Packed is a Record in little memory, which a session that lives for days needs: about
// 120 bytes in place of 450 and its texts. It refers to nothing else. Its bytes are, in
// this order: the numbers (varints, see numbers), and the texts that are not empty, each
// as its index in recordFields, its length (varint), and itself; last, if there is a
// Trace, traceIndex and its two IDs.
type Packed string

// traceIndex stands where the index of a text stands.
const traceIndex = 0xff

// maxOnStack is the size of the buffers for packed records, which stay on the stack
// unless the record is unusually large.
const maxOnStack = 512

// Pack returns the record in little memory.
func (r *Record) Pack() Packed { return Packed(r.appendTo(make([]byte, 0, maxOnStack))) }

// appendTo appends what Pack returns.
func (r *Record) appendTo(b []byte) []byte {
	for _, n := range r.numbers() {
		b = binary.AppendVarint(b, n)
	}
	for i := range recordFields {
		if f := &recordFields[i]; f.text != nil {
			if text := *f.text(r); text != "" {
				b = binary.AppendUvarint(append(b, byte(i)), uint64(len(text)))
				b = append(b, text...)
			}
		}
	}
	if t := r.Trace; t != nil {
		b = append(append(append(b, traceIndex), t.TraceID[:]...), t.SpanID[:]...)
	}
	return b
}

// Unpack returns the record that was packed. Start is as it was, without the reading of
// the monotonic clock, and Trace has only its IDs. The record's texts share the memory of p.
func (p Packed) Unpack() (r Record) {
	p.unpackTo(&r)
	return r
}

// unpackTo is Unpack into an empty record.
func (p Packed) unpackTo(r *Record) {
	n := r.numbers()
	for i := range n {
		n[i], p = p.varint()
	}
	r.setNumbers(n)
	for len(p) > 0 {
		if p[0] == traceIndex {
			r.Trace = &Trace{}
			copy(r.Trace.TraceID[:], p[1:])
			copy(r.Trace.SpanID[:], p[1+len(r.Trace.TraceID):])
			break
		}
		f := &recordFields[p[0]]
		var size uint64
		size, p = p[1:].uvarint()
		*f.text(r), p = string(p[:size]), p[size:]
	}
}

func (p Packed) bytes() (up, down int64) {
	up, p = p.varint()
	down, _ = p.varint()
	return up, down
}

// numbers are the values of a record that are not texts.
func (r *Record) numbers() [11]int64 {
	return [...]int64{r.BytesUp, r.BytesDown, r.Start.UnixNano(), int64(r.UID), int64(r.PID), int64(r.Attempts),
		int64(r.Establish), int64(r.Duration), int64(r.RetryIn), bit(r.ECH), bit(r.Truncated)}
}

func (r *Record) setNumbers(n [11]int64) {
	r.BytesUp, r.BytesDown, r.Start, r.UID, r.PID, r.Attempts = n[0], n[1], time.Unix(0, n[2]), UserID(n[3]), int(n[4]), int(n[5])
	r.Establish, r.Duration, r.RetryIn, r.ECH, r.Truncated = Seconds(n[6]), Seconds(n[7]), Seconds(n[8]), n[9] != 0, n[10] != 0
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// uvarint is binary.Uvarint without its errors: the number at the beginning of p, and
// what follows it.
func (p Packed) uvarint() (n uint64, rest Packed) {
	for i := 0; ; i++ {
		n |= uint64(p[i]&0x7f) << (7 * i)
		if p[i] < 0x80 {
			return n, p[i+1:]
		}
	}
}

func (p Packed) varint() (n int64, rest Packed) {
	u, rest := p.uvarint()
	return int64(u>>1) ^ -int64(u&1), rest
}
