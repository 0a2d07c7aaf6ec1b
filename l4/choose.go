package l4

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"ambassador/l4/bind"
	"ambassador/l4/destination"
	"ambassador/l4/ending"
	"ambassador/l4/nameserver"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/request"
	"ambassador/l4/task"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// routeTo chooses the upstream: the listener's, or that of the first rule that matches.
// It decides by the configuration that is in use when it returns.
func (s *session) routeTo(ctx context.Context) (upstream.Want, *outcome.Error) {
	s.at(outcome.StageRoute)
	d := s.downstream.destination()
	if d != nil {
		text := d.String()
		s.note(func(rec *outcome.Record) { rec.Destination = text })
	}
	if s.isOwnDial() {
		return upstream.Want{}, s.loops()
	}
	var decision *policy.Decision
	var err error
	for judged := false; !judged; judged = s.isCurrent() { // a reload may happen during a lookup
		if failure := s.renewRoute(); failure != nil {
			return upstream.Want{}, failure
		}
		if s.route.rules == nil {
			return s.choose(s.route.cfg.Upstream, d)
		}
		if d == nil {
			d = &destination.Destination{} // port 0: rules may match clients alone
		}
		d.Scope = ""
		var by policy.Decision
		by, err = s.decide(ctx, d, nameserver.Quick)
		decision = &by
	}
	r := s.route
	if err != nil {
		return upstream.Want{}, &outcome.Error{Stage: outcome.StageRoute, Reason: ending.Classify(outcome.StageRoute, err), Err: err}
	}
	if r.cfg.Rules != nil {
		s.ruled(decision)
	}
	switch decision.Verdict {
	case policy.Deny:
		return upstream.Want{}, &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.Denied, Err: fmt.Errorf("rule %s: %s", decision.Rule, decision.Why)}
	case policy.NoRule:
		return upstream.Want{}, &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.NoRoute, Err: fmt.Errorf("none of the rules of listener %s matches", r.cfg.Name)}
	}
	d.IPs, d.May, d.Ours, d.LookUp = decision.Addrs, decision.May, s.server.isOurs, s.lookUp
	if d.Partial {
		d.DecideAgain = func(ctx context.Context) ([]netip.Addr, error) { return s.decideAgain(ctx, d, decision) }
	}
	return s.choose(decision.Upstream, d)
}

// decide asks the rules, and looks up the destination's name if they need its
// addresses.
func (s *session) decide(ctx context.Context, d *destination.Destination, delay time.Duration) (policy.Decision, error) {
	s.identify(ctx) // a reload may have brought the first rule on uid
	q := s.downstream.query(d)
	decision, needAddrs := s.route.rules.Decide(&q, nil, false)
	if !needAddrs {
		return decision, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.lookUpTimeout())
	defer cancel()
	answer, err := s.lookUp(ctx, s.route.resolver, d.FullName(), delay)
	if err != nil {
		return policy.Decision{}, err
	}
	decision = s.decideOn(&q, d, answer)
	if d.Partial && decision.Upstream == "" && delay == nameserver.Quick { // a late address may be allowed
		ctx, cancel := context.WithTimeout(ctx, upstream.RestTimeout)
		defer cancel()
		if answer, err = s.lookUp(ctx, s.route.resolver, d.FullName(), nameserver.Patient); err == nil {
			decision = s.decideOn(&q, d, answer)
		}
	}
	return decision, nil
}

// decideOn asks the rules about the addresses of the destination's name.
func (s *session) decideOn(q *policy.Query, d *destination.Destination, answer nameserver.Answer) policy.Decision {
	found := answer.Addrs
	for i := range found {
		found[i] = found[i].Unmap()
	}
	d.Partial = answer.Partial
	decision, _ := s.route.rules.Decide(q, found, true)
	if len(decision.Addrs) < len(found) {
		d.Scope = s.route.cfg.Name + "/" + decision.Rules()
	}
	return decision
}

// decideAgain asks the rules about all addresses of the name, after a lookup that did not
// await those of one family. It returns those that the same verdict allows.
func (s *session) decideAgain(ctx context.Context, d *destination.Destination, first *policy.Decision) ([]netip.Addr, error) {
	again, err := s.decide(ctx, d, nameserver.Patient)
	if err != nil || again.Verdict != first.Verdict || again.Upstream != first.Upstream {
		return nil, err
	}
	d.May = again.May
	return again.Addrs, nil
}

// lookUp looks up a name that a client asks for, when it is the turn of the client's
// source. A client that asks for thousands of names that no server answers uses up
// neither the descriptors nor the lookups of other clients.
func (s *session) lookUp(ctx context.Context, r *nameserver.Resolver, host string, delay time.Duration) (nameserver.Answer, error) {
	if err := s.server.lookups.Take(ctx, s.downstream.source()); err != nil {
		return nameserver.Answer{}, &net.DNSError{Err: "no turn within the time: too many lookups wait for an answer", Name: host, IsTimeout: true, UnwrapErr: err}
	}
	defer s.server.lookups.GiveBack()
	s.rec.Trace().Begin(outcome.PhaseDNS, host, 0)
	answer, err := r.Addresses(ctx, host, delay)
	upstream.EndLookup(s.rec.Trace(), err)
	return answer, err
}

// lookUpTimeout bounds a lookup before the upstream is known: by LookupTimeout, or by
// the timeout that the client hints ask for if that is shorter.
func (s *session) lookUpTimeout() time.Duration {
	if hint := s.downstream.asks().Timeout; hint > 0 {
		return min(hint, upstream.LookupTimeout)
	}
	return upstream.LookupTimeout
}

// ruled records which rule has decided.
func (s *session) ruled(d *policy.Decision) {
	s.note(func(r *outcome.Record) { r.Rule, r.Verdict, r.VerdictReason = d.Rule, string(d.Verdict), d.Why })
	if f := s.server.opts.Observer.Ruled; f != nil {
		f(s.route.cfg.Name, d.Rule, d.Verdict)
	}
}

// choose sets the named upstream as the session's, and returns what to connect to and
// how. The destination is nil, or has port 0, if the client has not named one.
func (s *session) choose(name string, d *destination.Destination) (w upstream.Want, failure *outcome.Error) {
	c := s.route.choices[name]
	s.upstream = c.upstream
	s.note(func(r *outcome.Record) { r.Upstream = name })
	if s.route.traffic != c.traffic {
		s.server.countAt(s, c.traffic)
	}
	var err error
	if w.Header, err = s.proxyHeader(); err != nil {
		return w, &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.Internal, Err: err}
	}
	hints := s.downstream.asks()
	if w.Connect, err = narrow(c.upstream.Config().Connect, hints); err != nil {
		return w, &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.BadGreeting, Err: err}
	}
	w.Trace = s.rec.Trace()
	w.NoPreconnected, w.Exact = hints.NoPreconnect, hints.Attempts > 0
	if c.upstream.Config().Dynamic {
		if d == nil || d.Port == 0 {
			return w, &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.NoRoute, Err: fmt.Errorf("upstream %s dials what clients ask for, and this one has not asked for anything", name)}
		}
		w.To = c.upstream.Target(d)
		s.note(func(r *outcome.Record) { r.Destination = w.To.Name() }) // the same text, shared by all sessions
	}
	return w, nil
}

// accept tells the client, in the protocol of its request, that it is connected.
func (s *session) accept(ctx context.Context, r *request.Request, conn *upstream.Conn) error {
	ctx, cancel := task.WithTimeout(ctx, s.route.handshake())
	defer cancel()
	defer netconn.Bound(ctx, s.downstream.conn)()
	local, _ := conn.LocalAddr().(*net.TCPAddr)
	err := r.Answer.Accept(s.requestStream(ctx), local.AddrPort())
	if err == nil {
		return nil
	}
	reason := outcome.DownstreamLost
	switch {
	case netconn.IsTimeout(err):
		reason = outcome.HandshakeTimeout
	case netconn.IsReset(err):
		reason = outcome.DownstreamReset
	}
	e := &outcome.Error{Stage: outcome.StageAnswer, Reason: reason, Err: err}
	conn.Abort(e)
	return e
}

// decline tells the client, in the protocol of its request, why it is not connected. It
// is best effort: the record has the reason anyway.
func (s *session) decline(ctx context.Context, r *request.Request, failure *outcome.Error) {
	ctx, cancel := task.WithTimeout(ctx, answerTimeout)
	defer cancel()
	defer netconn.Bound(ctx, s.downstream.conn)()
	if err := r.Answer.Refuse(s.downstream.stream(), ending.ForClient(failure)); err == nil {
		netconn.CloseAfterReading(s.downstream.stream())
	}
}

// isOurs reports whether one of our sockets listens at an address.
func (s *Server) isOurs(to netip.AddrPort) bool {
	s.mu.Lock()
	listeners := s.listeners
	s.mu.Unlock()
	for _, l := range listeners {
		if at, ok := l.Addr().(*net.TCPAddr); ok && bind.Reaches(to, netconn.Unmapped(at)) {
			return true
		}
	}
	if s.opts.Guarded == nil {
		return false
	}
	for _, at := range s.opts.Guarded() {
		if bind.Reaches(to, at) {
			return true
		}
	}
	return false
}
