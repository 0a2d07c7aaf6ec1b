package relay

import (
	"errors"
	"time"

	"ambassador/l4/tlsrecord"
)

// Carried is the state of a session that another program continues in the same process,
// after exec: see Engine.Freeze and Engine.Adopt. Its descriptors stay open over exec.
type Carried struct {
	Sides   [2]CarriedSide `json:"sides"` // downstream, upstream
	Limits  Limits         `json:"limits"`
	HoldFIN time.Duration  `json:"hold_fin,omitempty"`
	HeldFIN bool           `json:"held_fin,omitempty"`
	// Age is the time since the start, in nanoseconds. LastUp and LastDown are the ages at
	// which a byte last moved; 0: never.
	Age      int64 `json:"age"`
	LastUp   int64 `json:"last_up,omitempty"`
	LastDown int64 `json:"last_down,omitempty"`
	Up       int64 `json:"up,omitempty"`
	Down     int64 `json:"down,omitempty"`
	// Settled: Owner.Settled was called. Aged: the session has lived for SettleAfter.
	Settled    bool `json:"settled,omitempty"`
	Aged       bool `json:"aged,omitempty"`
	FirstClose Side `json:"first_close,omitempty"`
	Truncated  bool `json:"truncated,omitempty"`
}

// CarriedSide is one side of a Carried.
type CarriedSide struct {
	FD int `json:"fd"` // the socket
	// Held are bytes for the side that it has not accepted yet.
	Held []byte `json:"-"`
	// Pipe has the ends of a pipe with PipeBytes more of them; both 0: there is none.
	PipeRead  int `json:"pipe_read,omitempty"`
	PipeWrite int `json:"pipe_write,omitempty"`
	PipeBytes int `json:"pipe_bytes,omitempty"`
	// TLS is the state of the side's TLS, with its secrets: whoever has it overwrites it
	// after its use. Empty: plain.
	TLS []byte `json:"-"`
	// Owed are the application's bytes in Held that are not counted yet, if TLS has
	// encrypted them.
	Owed int `json:"owed,omitempty"`

	EOF    bool `json:"eof,omitempty"`    // its FIN has come
	Clean  bool `json:"clean,omitempty"`  // after close_notify
	Passed bool `json:"passed,omitempty"` // its FIN was passed on
}

// Descriptors returns the descriptors of the session.
func (c *Carried) Descriptors() (fds []int) {
	for i := range c.Sides {
		s := &c.Sides[i]
		fds = append(fds, s.FD)
		if s.PipeBytes > 0 {
			fds = append(fds, s.PipeRead, s.PipeWrite)
		}
	}
	return fds
}

// Renumber gives every descriptor the number that to returns for it; -1: it is gone, and
// Adopt fails.
func (c *Carried) Renumber(to func(int) int) {
	for i := range c.Sides {
		s := &c.Sides[i]
		s.FD = to(s.FD)
		if s.PipeBytes > 0 {
			s.PipeRead, s.PipeWrite = to(s.PipeRead), to(s.PipeWrite)
		}
	}
}

// Valid returns an error if the values contradict each other.
func (c *Carried) Valid() error {
	seen := map[int]bool{}
	for _, fd := range c.Descriptors() {
		if fd < 0 {
			return errors.New("a descriptor has not arrived: is the limit of descriptors (LimitNOFILE=) lower?")
		}
		if fd <= 2 || seen[fd] {
			return errors.New("a descriptor is standard input, output or error, or appears twice")
		}
		seen[fd] = true
	}
	for i := range c.Sides {
		switch s := &c.Sides[i]; {
		case s.PipeBytes < 0, s.PipeBytes > 0 && len(s.Held) > 0:
			return errors.New("bytes are held both in a pipe and in memory")
		case s.Passed && !s.EOF:
			return errors.New("a FIN was passed on that has not come")
		case s.Owed < 0, s.Owed > len(s.Held):
			return errors.New("more bytes are owed than held")
		case len(s.TLS) > 0 && s.PipeBytes > 0:
			return errors.New("a side with TLS has a pipe")
		case len(s.TLS) > 0:
			var tls tlsrecord.State
			err := tls.UnmarshalBinary(s.TLS)
			if tls.Clear(); err != nil {
				return err
			}
		}
	}
	if c.Age < 0 || c.Up < 0 || c.Down < 0 || c.LastUp < 0 || c.LastDown < 0 || c.LastUp > c.Age || c.LastDown > c.Age || c.FirstClose < None || c.FirstClose > Upstream {
		return errors.New("a counter or a time is out of range")
	}
	if c.Sides[0].Passed && c.Sides[1].Passed {
		return errors.New("the session has ended")
	}
	return nil
}

// CanFreeze reports whether a session can be frozen at all: a loop runs it.
func CanFreeze(s Session) bool { return canFreeze(s) }

// Frozen is what Freeze found.
type Frozen int8

// FrozenBusy means that the session is about to end, or that its owner is being called:
// Freeze may succeed a moment later. FrozenWhole means that another program can continue
// the session. FrozenLost means that none can: it has TLS 1.2, or a side has refused bytes.
// FrozenUnable means the same of a session that cannot be frozen, because no loop runs
// it.
const (
	FrozenBusy Frozen = iota
	FrozenWhole
	FrozenLost
	FrozenUnable
)
