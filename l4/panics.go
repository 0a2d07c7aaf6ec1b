package l4

import (
	"errors"

	"ambassador/l4/relay"
	"ambassador/l4/task"
	"ambassador/l4/upstream"
)

// The parts of a server that continue after a panic in them, as Observer.Panicked names
// them.
const (
	PartSession = "session"
	PartRelay   = "relay"
)

// Parts lists all parts.
func Parts() []string {
	return []string{PartSession, PartRelay, upstream.PartProber, upstream.PartResolver, upstream.PartPreconnect, upstream.PartUpstream}
}

// reportRelayed reports a panic of the relay in the chain of err, if there is one.
func reportRelayed(g task.Guard, part string, err error, attrs ...any) {
	if e, ok := errors.AsType[*relay.PanicError](err); ok {
		g.Report(part, e.Value, e.Stack, attrs...)
	}
}

func (s *Server) guard() task.Guard { return task.Guard{Log: s.log, Count: s.opts.Observer.Panicked} }
