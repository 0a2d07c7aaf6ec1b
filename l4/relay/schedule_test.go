package relay

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"ambassador/l4/relay/ledger"
)

// FuzzSchedule runs a schedule of actions of two applications and on their session,
// and compares with a model: what each end must receive, and which results are
// allowed. The first byte selects the engine and the legs, each other is a step.
func FuzzSchedule(f *testing.F) {
	for first := range byte(2 * len(kinds)) {
		for _, steps := range [][]byte{
			{opSend + 3, upstream | opSend + 9, opEnd, upstream | opSend + 4, upstream | opEnd},
			{upstream | opSend + 31, upstream | opEnd, opSend + 1, opEnd | atOnce, opWait},
			{opSend + 30 | atOnce, upstream | opSend + 31 | atOnce, opEnd | atOnce, upstream | opEnd | atOnce, opWait},
			{opSend + 2, opReset, opWait},
			{upstream | opSend + 2 | atOnce, upstream | opReset},
			{upstream | opEnd, upstream | opReset | atOnce, opSend + 2 | atOnce, opEnd},
			{opSend + 5, opClose, upstream | opSend + 5 | atOnce, upstream | opEnd | atOnce},
			{upstream | opSend + 5, upstream | opClose, opEnd},
			{upstream | opPause, opSend + 31 | atOnce, opSend + 31 | atOnce, opEnd | atOnce, upstream | opSend + 7, upstream | opResume, upstream | opEnd},
			{upstream | opPause, opSend + 31 | atOnce, opReset | atOnce, upstream | opResume},
			{opPause, upstream | opSend + 31 | atOnce, upstream | opSend + 31 | atOnce, opKill},
			{opSend + 8, upstream | opSend + 8, opFinish},
			{opSend + 31 | atOnce, opFinish | atOnce, upstream | opFinish | atOnce, opKill | atOnce, opReset | atOnce, upstream | opEnd},
			{opEnd, opFinish},
			{opReset | atOnce, upstream | opClose},
		} {
			f.Add(append([]byte{first}, steps...))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 2 || len(in) > 40 {
			return
		}
		names := []string{"epoll", "portable"}
		k := kinds[int(in[0]/2)%len(kinds)]
		s := newSchedule(newPair(t, engines[names[in[0]%2]](), k.down, k.up), in[0]%2 == 1)
		for _, b := range in[1:] {
			if s.settled {
				break
			}
			s.step(b)
		}
		s.finish()
	})
}

// A step is one of these, for an end (downstream unless upstream is added). The next
// step follows when the effects of the model have been seen, or atOnce.
const (
	opSend   = 0 // and up to 31: how much
	opEnd    = 32
	opReset  = 36
	opClose  = 39
	opKill   = 42
	opFinish = 44
	opPause  = 48
	opResume = 54
	opWait   = 60

	upstream = 0x40
	atOnce   = 0x80
)

// schedule is the model of a session.
type schedule struct {
	t        *testing.T
	session  Session
	done     chan Result
	portable bool
	ends     [2]*modelEnd
	log      strings.Builder

	may     [EndStopped + 1]bool // the endings that are possible
	must    bool                 // it ends by itself
	drained bool                 // FinishIfIdle ended it
	first   Side                 // the side that ended first, if that is certain
	synced  bool                 // all bytes sent have arrived
	settled bool                 // it has ended, and nothing more can happen
}

// modelEnd is an application, and its state.
type modelEnd struct {
	*end
	side Side
	unix bool
	todo chan func() // of the writer

	sent                     int64
	ended, reset, closed     bool
	paused                   bool
	mu                       sync.Mutex
	gate                     *sync.Cond // signals a change of paused
	received                 int64      // guarded by mu
	wrong, complete, stopped bool       // guarded by mu; received wrong bytes; a FIN; any end
	refused                  bool       // guarded by mu; a write has failed
	writing                  int        // guarded by mu; entries in todo
}

func newSchedule(p *pair, portable bool) *schedule {
	s := &schedule{t: p.t, session: p.session, done: p.done, portable: portable, synced: true}
	for i, e := range []*end{p.down, p.up} {
		_, unix := e.raw.(*net.UnixConn)
		m := &modelEnd{end: e, side: Side(i + 1), unix: unix, todo: make(chan func(), 64)}
		m.gate = sync.NewCond(&m.mu)
		s.ends[i] = m
		go m.write()                               // finish ends it
		go m.read(stream{1 << 40, 1000 * (2 - i)}) // the end of its connection ends it
	}
	return s
}

func (m *modelEnd) write() {
	for f := range m.todo {
		f()
		m.mu.Lock()
		m.writing--
		m.mu.Unlock()
	}
}

// idle reports whether the writer has nothing left to do.
func (m *modelEnd) idle() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writing == 0
}

func (m *modelEnd) read(from stream) {
	buf := make([]byte, 64<<10)
	for {
		m.mu.Lock()
		for m.paused {
			m.gate.Wait()
		}
		m.mu.Unlock()
		n, err := m.Conn.Read(buf)
		m.mu.Lock()
		m.wrong = m.wrong || !from.has(m.received, buf[:n])
		m.received += int64(n)
		m.complete, m.stopped = err == io.EOF, err != nil
		m.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// do queues a function for the writer.
func (m *modelEnd) do(f func() error) {
	m.mu.Lock()
	m.writing++
	m.mu.Unlock()
	m.todo <- func() {
		if err := f(); err != nil {
			m.mu.Lock()
			m.refused = true
			m.mu.Unlock()
		}
	}
}

func (s *schedule) step(b byte) {
	i := int(b&upstream) / upstream
	e, other, v := s.ends[i], s.ends[1-i], b&^(upstream|atOnce)
	fmt.Fprintf(&s.log, " %v:%d", e.side, v)
	if b&atOnce != 0 {
		s.log.WriteByte('!')
	}
	alive := !e.ended && !e.reset && !e.closed
	switch {
	case v < opEnd && alive:
		s.send(e, other, v)
	case v >= opEnd && v < opReset && alive:
		s.end(e, other)
	case v >= opReset && v < opClose && !e.reset && !e.closed:
		s.reset(e, other)
	case v >= opClose && v < opKill && alive && s.synced && !e.paused:
		s.close(e, other)
	case v >= opKill && v < opFinish:
		s.may[EndStopped], s.must = true, true
		s.session.Stop(errKilled)
	case v >= opFinish && v < opPause:
		s.finishIfIdle()
	case v >= opPause && v < opWait:
		e.mu.Lock()
		e.paused = v < opResume
		e.gate.Broadcast()
		e.mu.Unlock()
	}
	if b&atOnce == 0 {
		s.wait()
	}
}

func (s *schedule) send(e, other *modelEnd, v byte) {
	n := int64(v+1) * int64(v+1)
	if v >= 24 {
		n = int64(v-23) * 200_000
	}
	at := stream{1 << 40, 1000 * int(e.side)}
	for left := n; left > 0; {
		b := at.at(e.sent, int(left))
		e.do(func() error { _, err := e.Conn.Write(b); return err })
		e.sent += int64(len(b))
		left -= int64(len(b))
	}
	s.synced = false
	if other.closed || other.reset {
		s.may[ledger.Ending(other.side, nil)] = true // it refuses the bytes
	}
}

func (s *schedule) end(e, other *modelEnd) {
	e.ended = true
	e.do(e.closeWrite)
	s.fin(e, other)
}

// fin records an end's FIN.
func (s *schedule) fin(e, other *modelEnd) {
	switch {
	case other.ended:
		s.may[EndClosed], s.must = true, true
	case other.reset && other.unix: // on a unix socket that was a close
		s.may[EndClosed] = true
	}
}

func (s *schedule) reset(e, other *modelEnd) {
	certain := !e.unix && !e.ended && !s.must
	e.reset = true
	s.may[ledger.Ending(e.side, nil)] = true
	clean := e.ended && e.Conn != e.raw // after close_notify a reset does not count
	if certain || !s.portable && !e.unix && !clean {
		s.must = true // the portable engine does not watch a side that has ended
	}
	if e.unix && other.ended {
		s.may[EndClosed] = true
	}
	e.end.reset()
}

// close closes both directions: only later bytes are refused.
func (s *schedule) close(e, other *modelEnd) {
	e.ended, e.closed = true, true
	e.do(e.Conn.Close)
	s.fin(e, other)
}

func (s *schedule) finishIfIdle() {
	idle := s.synced && !s.portable && !s.must && !s.ends[0].ended && !s.ends[1].ended && !s.ends[0].reset && !s.ends[1].reset
	did := s.session.FinishIfIdle(0, errDrained)
	switch {
	case did:
		s.may[EndStopped], s.must, s.drained = true, true, true
	case idle:
		s.fatal("an idle session cannot be finished")
	}
}

// wait waits for the certain effects of the steps so far.
func (s *schedule) wait() {
	if s.must {
		s.settled = true
		return
	}
	for i, e := range s.ends {
		other := s.ends[1-i]
		if other.paused || other.closed || other.reset || e.reset {
			continue
		}
		s.await("its bytes or its FIN do not arrive", e.side, func() bool {
			if len(s.done) > 0 { // finish says whether it may
				return true
			}
			idle := e.idle()
			other.mu.Lock()
			defer other.mu.Unlock()
			return idle && other.received == e.sent && other.complete == e.ended
		})
	}
	if len(s.done) > 0 {
		s.settled = true
		return
	}
	a, b := s.ends[0], s.ends[1]
	s.synced = !a.paused && !b.paused && !a.reset && !b.reset
	if s.synced && a.ended != b.ended && s.first == None {
		s.first = a.side
		if b.ended {
			s.first = b.side
		}
		if !s.session.HalfClosed() {
			s.fatal("it is not half-closed")
		}
	}
}

// await polls for a condition.
func (s *schedule) await(what string, side Side, ok func() bool) {
	for limit := time.Now().Add(bound / 4); !ok(); runtime.Gosched() {
		if time.Now().After(limit) {
			s.fatal(fmt.Sprintf("%v: %s", side, what))
		}
	}
}

// finish lets both ends read on, ends the session if it does not end by itself, and
// compares.
func (s *schedule) finish() {
	for _, e := range s.ends {
		e.mu.Lock()
		e.paused = false
		e.gate.Broadcast()
		e.mu.Unlock()
		close(e.todo)
	}
	if !s.must {
		s.may[EndStopped] = true
		s.session.Stop(errKilled)
	}
	var r Result
	select {
	case r = <-s.done:
	case <-time.After(bound / 4):
		s.fatal("it does not end")
	}
	if !s.may[r.End] {
		s.fatal(fmt.Sprintf("it may not end as %+v", r))
	}
	if s.first != None && r.FirstClose != s.first {
		s.fatal(fmt.Sprintf("%v ended first: %+v", s.first, r))
	}
	for _, e := range s.ends {
		s.await("its writer hangs", e.side, e.idle)
	}
	for i, e := range s.ends {
		moved := []int64{r.Down, r.Up}[i]
		if !e.reset && !e.closed {
			s.await("the end of its stream does not arrive", e.side, func() bool { e.mu.Lock(); defer e.mu.Unlock(); return e.stopped })
		}
		s.judge(e, s.ends[1-i], moved, r)
	}
}

// judge checks what an end has received.
func (s *schedule) judge(e, other *modelEnd, moved int64, r Result) {
	e.mu.Lock()
	defer e.mu.Unlock()
	whole := other.ended && e.received == other.sent
	switch {
	case e.wrong:
		s.fatal(fmt.Sprintf("%v has received wrong bytes", e.side))
	case moved > other.sent || moved < e.received:
		s.fatal(fmt.Sprintf("%v has received %d of %d bytes: %+v", e.side, e.received, other.sent, r))
	case r.End == EndClosed && !e.closed && !e.reset && !(e.complete && whole) && !(other.unix && other.reset):
		s.fatal(fmt.Sprintf("%v lacks some of what was sent, %d of %d: %+v", e.side, e.received, other.sent, r))
	case e.complete && !whole && !s.drained && !e.refused && !e.unix && !other.unix:
		s.fatal(fmt.Sprintf("%v sees an end after %d of %d bytes: %+v", e.side, e.received, other.sent, r))
	}
}

func (s *schedule) fatal(what string) {
	s.t.Helper()
	for _, e := range s.ends {
		e.raw.Close()
	}
	s.t.Fatalf("%s\nsteps:%s", what, s.log.String())
}
