package relay

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"ambassador/l4/relay/ledger"
)

// Carries reports whether the engine can carry sessions over at all.
func (e *Engine) Carries() bool { return !e.portableOnly }

func canFreeze(s Session) bool {
	_, ok := s.(*flow)
	return ok
}

// CanCarry reports whether a session can be continued by another program now.
func (e *Engine) CanCarry(s Session) bool {
	f, ok := s.(*flow)
	if !ok {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.carriable()
}

// carriable reports whether all that the flow is can be carried. Mu is held.
func (f *flow) carriable() bool {
	for i := range f.sides {
		if t := f.sides[i].tls; t != nil && !t.carriable() || f.ledger.Sides[i].Broken != nil {
			return false
		}
	}
	return true
}

// Freeze stops a session where it is: no byte moves, no limit is checked, and calls of
// its methods that change it wait, until Thaw. With FrozenWhole it returns the state,
// which is valid until Thaw. After FrozenBusy and FrozenUnable the session is not
// frozen. If the process dies meanwhile, or another program takes its place that does
// not know the session, both sides get a RST.
func (e *Engine) Freeze(s Session) (Carried, Frozen) {
	f, ok := s.(*flow)
	if !ok {
		return Carried{}, FrozenUnable
	}
	f.mu.Lock()
	if f.ledger.Over || f.inSettled || f.dueSettled {
		f.mu.Unlock()
		return Carried{}, FrozenBusy
	}
	if !f.carriable() {
		return Carried{}, FrozenLost
	}
	if f.late != nil { // the successor does not know it
		setKeepAlive(f.sides[1].fd, f.late)
		f.late = nil
	}
	return f.carried(), FrozenWhole
}

// Thaw undoes Freeze, if that returned FrozenWhole or FrozenLost.
func (e *Engine) Thaw(s Session) {
	s.(*flow).mu.Unlock()
}

// carried returns the state. Mu is held.
func (f *flow) carried() Carried {
	c := Carried{Limits: f.limits, HoldFIN: f.holdFIN, HeldFIN: f.heldFIN, Age: f.loop.engine.now() - f.start,
		LastUp: f.last[up].Load(), LastDown: f.last[down].Load(), Up: f.Up(), Down: f.Down(),
		Settled: f.settling, Aged: f.aged, FirstClose: f.ledger.FirstClose, Truncated: f.ledger.Truncated}
	for i := range f.sides {
		s, a, to := &f.sides[i], &f.ledger.Sides[i], &c.Sides[i]
		to.FD, to.Held, to.EOF, to.Clean, to.Passed = int(s.fd), s.held, a.EOF, a.Clean, a.Passed
		if s.tls != nil {
			to.TLS, _ = s.tls.export() // it is carriable
			to.Owed = s.tls.owed
		}
		if s.pipe != nil {
			to.PipeRead, to.PipeWrite, to.PipeBytes = int(s.pipe.r), int(s.pipe.w), s.pipe.n
		}
	}
	return c
}

// Adopt continues a session that another program of this process has frozen. It takes
// the descriptors over; on an error it has closed them with a RST.
func (e *Engine) Adopt(c *Carried, owner Owner) (Session, error) {
	loop, err := e.loop(), c.Valid()
	switch {
	case err != nil:
	case e.portableOnly:
		err = fmt.Errorf("adopt: the portable relay cannot")
	case loop == nil:
		err = ioError("epoll_create1", syscall.EMFILE)
	case e.table.at(int32(c.Sides[0].FD)) == nil || e.table.at(int32(c.Sides[1].FD)) == nil:
		err = ioError("adopt", syscall.EMFILE)
	}
	if err != nil {
		c.abandon()
		return nil, err
	}
	f := &flow{loop: loop, limits: c.Limits, holdFIN: c.HoldFIN, heldFIN: c.HeldFIN, owner: owner, start: e.now() - c.Age, epfd: loop.epfd,
		settling: c.Settled, aged: c.Aged}
	f.watched.flow = f
	f.mu.Lock()
	if err := f.restore(c); err != nil {
		f.ledger.Over = true
		f.mu.Unlock()
		c.abandon()
		return nil, err
	}
	f.rearm() // level-triggered: epoll reports at once what has arrived meanwhile
	if next := f.next(); !f.ledger.Over && next < forever {
		loop.clock.set(f, f.start+int64(next))
	}
	f.releaseWith(func() { go f.owner.Done(*f.ledger.Result) }) // never from within Adopt
	return f, nil
}

// restore is the reverse of carried. Mu is held.
func (f *flow) restore(c *Carried) error {
	for i := range f.sides {
		from := &c.Sides[i]
		if len(from.TLS) == 0 {
			continue
		}
		t, err := restoreTLS(from.TLS)
		if err != nil {
			return err
		}
		clear(from.TLS)
		t.owed = from.Owed
		f.sides[i].tls = t
	}
	f.moved[up].Store(c.Up)
	f.moved[down].Store(c.Down)
	f.last[up].Store(c.LastUp)
	f.last[down].Store(c.LastDown)
	f.ledger.FirstClose, f.ledger.Truncated = c.FirstClose, c.Truncated
	for i := range f.sides {
		s, from := &f.sides[i], &c.Sides[i]
		f.ledger.Sides[i] = ledger.Account{EOF: from.EOF, Clean: from.Clean, Passed: from.Passed}
		s.fd = int32(from.FD)
		if len(from.Held) > 0 {
			s.held = append([]byte(nil), from.Held...) // what is carried is one large block
		}
		if from.PipeBytes > 0 {
			s.pipe = &pipe{r: int32(from.PipeRead), w: int32(from.PipeWrite), n: from.PipeBytes}
		}
		f.loop.engine.table.at(s.fd).Store(&f.watched)
	}
	return nil
}

// Freeze ends the wait of Await without a call, and returns the descriptor of a socket
// that the next program continues: see Engine.AdoptSocket. It returns false, and does
// nothing, if the socket is in Go's poller or closed. Until Thaw nobody may use the
// socket. If the process dies meanwhile, the client gets a RST.
func (s *Socket) Freeze() (fd int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return 0, false
	}
	s.unwatch()
	setLingerZero(s.fd)
	return int(s.fd), true
}

// Thaw undoes Freeze.
func (s *Socket) Thaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd >= 0 {
		setLingerOff(s.fd)
	}
}

// AdoptSocket continues the accepted socket of a client that another program of this
// process has frozen.
func (e *Engine) AdoptSocket(fd int, remote netip.AddrPort, keepAlive *net.KeepAliveConfig) net.Conn {
	s := newSocket(e, int32(fd), remote, keepAlive)
	s.Thaw()
	return s
}

// abandon closes the descriptors, the sockets with a RST.
func (c *Carried) abandon() {
	for _, fd := range c.Descriptors() {
		closeWithReset(int32(fd))
	}
}
