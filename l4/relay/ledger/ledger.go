package ledger

// Ledger records how the sides of a session end, and decides how the session ends.
// It is pure: both relays tell it what they read and write, and act when a call
// returns over, which happens once. The caller serializes the calls, and may read the
// fields between them. It sets them only to continue a session of another program, and
// Over to give up a session that has not begun.
//
//	a FIN                  passed on; after the second the session is closed
//	a failed read          the session ends, as a reset or loss of that side
//	a failed write         the side is read on, because the bytes that it sent before
//	                       still count: its FIN or error then ends the session. The
//	                       session ends at once if the side has sent its FIN already,
//	                       if the error is no reset, or if both sides refuse bytes:
//	                       then the first to refuse counts
//	a failed close_notify  the same, but nothing if the side's FIN came with its own
//	                       close_notify: all bytes have been delivered both ways
type Ledger struct {
	Sides      [2]Account // by Side - 1
	FirstClose Side       // see Result
	Truncated  bool       // see Result
	Over       bool       // the ending is decided: the session is over
	Result     *Result    // how; nil before
}

// Account is what the ledger has on one side.
type Account struct {
	EOF    bool     // it has sent its FIN
	Clean  bool     // after close_notify: a later failure does not affect the bytes that it sent
	Passed bool     // its FIN has been passed on
	Broken *Failure // of a write to it; nil: none has failed
}

// Failure is how a write to a side failed.
type Failure struct {
	err      error
	notified bool // it was our close_notify, after all bytes
}

// Refusing reports whether the side has refused bytes.
func (a *Account) Refusing() bool { return a.Broken != nil && !a.Broken.notified }

// FINKind is how a side's FIN came.
type FINKind int8

// The kinds of a FIN.
const (
	FINPlain FINKind = iota // without TLS
	FINClean                // after close_notify
	FINCut                  // TLS without close_notify
)

func (l *Ledger) of(s Side) (own, other *Account) { return &l.Sides[s-1], &l.Sides[2-s] }

// HalfClosed reports whether exactly one side has sent its FIN.
func (l *Ledger) HalfClosed() bool { return l.Sides[0].EOF != l.Sides[1].EOF }

// FIN records the FIN of a side. If the side has refused bytes before, it had closed
// both ways, and this is its reset.
func (l *Ledger) FIN(s Side, kind FINKind) (over bool) {
	own, _ := l.of(s)
	own.EOF, own.Clean = true, kind == FINClean
	if l.FirstClose == None {
		l.FirstClose = s
	}
	if own.Refusing() || own.Broken != nil && !own.Clean {
		return l.Failed(s, own.Broken.err)
	}
	l.Truncated = l.Truncated || kind == FINCut
	return false
}

// MayHideReset reports whether a FIN of the side, which is about to be recorded, may
// hide a reset whose error the write of another goroutine has got and not recorded.
func (l *Ledger) MayHideReset(s Side, kind FINKind) bool {
	own, other := l.of(s)
	return !l.Over && kind != FINClean && own.Broken == nil && !other.EOF
}

// Passed records that a side's FIN was passed on.
func (l *Ledger) Passed(s Side) (over bool) {
	own, other := l.of(s)
	own.Passed = true
	return other.Passed && l.Conclude(Result{End: EndClosed})
}

// WriteFailed records that the side did not accept bytes.
func (l *Ledger) WriteFailed(s Side, err error) (over bool) {
	own, other := l.of(s)
	own.Broken = &Failure{err: err}
	switch {
	case other.Refusing():
		return l.Failed(3-s, other.Broken.err)
	case own.EOF || !isReset(err):
		return l.Failed(s, err)
	}
	return false
}

// NotifyFailed records that the side did not accept our close_notify.
func (l *Ledger) NotifyFailed(s Side, err error) (over bool) {
	own, _ := l.of(s)
	own.Broken = &Failure{err: err, notified: true}
	return !own.Clean && (own.EOF || !isReset(err)) && l.Failed(s, err)
}

// Failed ends the session because of an error of the side.
func (l *Ledger) Failed(s Side, err error) (over bool) {
	return l.Conclude(Result{End: Ending(s, err), Err: err, ErrSide: s})
}

// Conclude decides how the session ends. Only the first call has an effect.
func (l *Ledger) Conclude(r Result) (over bool) {
	if l.Over {
		return false
	}
	r.FirstClose, r.Truncated = l.FirstClose, l.Truncated
	if r.FirstClose == None && r.End != EndDownstreamTLS && r.End != EndUpstreamTLS {
		r.FirstClose = r.ErrSide
	}
	l.Over, l.Result = true, &r
	return true
}
