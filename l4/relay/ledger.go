package relay

// ledger records how the sides of a session end, and decides how the session ends.
// It is pure: both relays tell it what they read and write, and act when a call
// returns over, which happens once. The caller serializes the calls.
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
type ledger struct {
	sides      [2]account // by Side - 1
	firstClose Side
	truncated  bool
	over       bool
	result     *Result // set when over
}

// account is what the ledger has on one side.
type account struct {
	eof      bool  // it has sent its FIN
	clean    bool  // after close_notify: a later failure does not affect the bytes that it sent
	passed   bool  // its FIN has been passed on
	notified bool  // broken is the error of our close_notify, after all bytes
	broken   error // the error of a failed write to it
}

// refusing reports whether the side has refused bytes.
func (a *account) refusing() bool { return a.broken != nil && !a.notified }

// finKind is how a side's FIN came.
type finKind int8

const (
	finPlain finKind = iota // without TLS
	finClean                // after close_notify
	finCut                  // TLS without close_notify
)

func (l *ledger) of(s Side) (own, other *account) { return &l.sides[s-1], &l.sides[2-s] }

// halfClosed reports whether exactly one side has sent its FIN.
func (l *ledger) halfClosed() bool { return l.sides[0].eof != l.sides[1].eof }

// fin records the FIN of a side. If the side has refused bytes before, it had closed
// both ways, and this is its reset.
func (l *ledger) fin(s Side, kind finKind) (over bool) {
	own, _ := l.of(s)
	own.eof, own.clean = true, kind == finClean
	if l.firstClose == None {
		l.firstClose = s
	}
	if own.refusing() || own.broken != nil && !own.clean {
		return l.failed(s, own.broken)
	}
	l.truncated = l.truncated || kind == finCut
	return false
}

// mayHideReset reports whether a FIN of the side, which is about to be recorded, may
// hide a reset whose error the write of another goroutine has got and not recorded.
func (l *ledger) mayHideReset(s Side, kind finKind) bool {
	own, other := l.of(s)
	return !l.over && kind != finClean && own.broken == nil && !other.eof
}

// passed records that a side's FIN was passed on.
func (l *ledger) passed(s Side) (over bool) {
	own, other := l.of(s)
	own.passed = true
	return other.passed && l.conclude(Result{End: EndClosed})
}

// writeFailed records that the side did not accept bytes.
func (l *ledger) writeFailed(s Side, err error) (over bool) {
	own, other := l.of(s)
	own.broken = err
	switch {
	case other.refusing():
		return l.failed(3-s, other.broken)
	case own.eof || !isReset(err):
		return l.failed(s, err)
	}
	return false
}

// notifyFailed records that the side did not accept our close_notify.
func (l *ledger) notifyFailed(s Side, err error) (over bool) {
	own, _ := l.of(s)
	own.broken, own.notified = err, true
	return !own.clean && (own.eof || !isReset(err)) && l.failed(s, err)
}

// failed ends the session because of an error of the side.
func (l *ledger) failed(s Side, err error) (over bool) {
	return l.conclude(Result{End: ending(s, err), Err: err, ErrSide: s})
}

// conclude decides how the session ends. Only the first call has an effect.
func (l *ledger) conclude(r Result) (over bool) {
	if l.over {
		return false
	}
	r.FirstClose, r.Truncated = l.firstClose, l.truncated
	if r.FirstClose == None {
		r.FirstClose = r.ErrSide
	}
	l.over, l.result = true, &r
	return true
}
