package l4

import (
	"cmp"

	"ambassador/l4/outcome"
	"ambassador/l4/relay/load"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// Observer receives events, for metrics. A nil field is not called. Its functions are
// called from many goroutines and must not block.
type Observer struct {
	// Opened is called when a connection was accepted.
	Opened func(listener string)
	// Adopted is called instead of Opened for a session that a program before this one
	// has accepted.
	Adopted func()
	// Ended is called when a session is over. The record is final and does not change.
	Ended func(*outcome.Record)
	// Ruled is called when a listener's rules have decided. rule is empty if no rule
	// matched.
	Ruled func(listener, rule string, verdict policy.Verdict)
	// Upstream receives the events of attempts.
	Upstream upstream.Observer
	// AcceptPaused is called when accepting pauses because descriptors or memory ran
	// out.
	AcceptPaused func(listener string)
	// Panicked is called when a part, one of Parts, has recovered from a panic.
	Panicked func(part string)
}

func (o *Observer) adopted() {
	if o.Adopted != nil {
		o.Adopted()
	}
}

// Traffic is what one listener has moved for one upstream, live sessions included. The
// byte counts never decrease while the process lives.
type Traffic struct {
	Listener, Upstream string
	Active             int
	Up, Down           int64
}

// LimitUse is a limit of the whole process and how much of it is in use.
type LimitUse struct {
	Key       string // the key of the configuration: "limits.connections"
	Max, Used int64  // sessions or bytes
}

// LimitUses returns the limits of the process.
func (s *Server) LimitUses() []LimitUse {
	s.mu.Lock()
	connections, memory := LimitUse{"limits.connections", int64(s.limit), int64(s.slots)}, cmp.Or(s.cfg.MaxMemory, DefaultMemory)
	s.mu.Unlock()
	return []LimitUse{connections, {"limits.memory", memory, s.HeldBytes()}}
}

// Stalls is how long single events delayed other sessions; see load.Stalls.
type Stalls = load.Stalls

// StallBounds are the upper bounds of Stalls.Counts.
var StallBounds = load.StallBounds

// Stalls returns how long events on the engine's loops have taken since the start.
func (s *Server) Stalls() Stalls { return s.engine.Stalls() }
