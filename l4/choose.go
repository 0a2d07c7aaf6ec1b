package l4

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"ambassador/l4/outcome"
	"ambassador/l4/task"
	"ambassador/policy"
)

// routeTo chooses the upstream: the listener's, or that of the first rule that matches.
// It decides by the configuration that is in use when it returns.
func (s *session) routeTo(ctx context.Context) (want, *outcome.Error) {
	s.at(outcome.StageRoute)
	d := s.downstream.destination()
	if d.port != 0 {
		s.note(func(rec *outcome.Record) { rec.Destination = d.String() })
	}
	if s.isOwnDial() {
		return want{}, s.loops()
	}
	var decision policy.Decision
	var err error
	for judged := false; !judged; judged = s.isCurrent() { // a reload may happen during a lookup
		if failure := s.renewRoute(); failure != nil {
			return want{}, failure
		}
		if s.route.rules == nil {
			return s.choose(s.route.cfg.Upstream, d)
		}
		d.scope = ""
		decision, err = s.decide(ctx, d)
	}
	r := s.route
	if err != nil {
		return want{}, &outcome.Error{Stage: outcome.StageRoute, Reason: classify(outcome.StageRoute, err), Err: err}
	}
	if r.cfg.Rules != nil {
		s.ruled(&decision)
	}
	switch decision.Verdict {
	case policy.Deny:
		return want{}, &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.Denied, Err: fmt.Errorf("rule %s: %s", decision.Rule, decision.Why)}
	case policy.NoRule:
		return want{}, &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.NoRoute, Err: fmt.Errorf("none of the rules of listener %s matches", r.cfg.Name)}
	}
	d.ips, d.may, d.ours, d.lookUp = decision.Addrs, decision.May, s.server.isOurs, s.lookUp
	return s.choose(decision.Upstream, d)
}

// decide asks the rules, and looks up the destination's name if they need its
// addresses.
func (s *session) decide(ctx context.Context, d *destination) (policy.Decision, error) {
	q := s.downstream.query(d)
	decision, needAddrs := s.route.rules.Decide(&q, nil, false)
	if !needAddrs {
		return decision, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.lookUpTimeout())
	defer cancel()
	found, err := s.lookUp(ctx, s.route.resolver, d.host)
	if err != nil {
		return policy.Decision{}, err
	}
	for i := range found {
		found[i] = found[i].Unmap()
	}
	decision, _ = s.route.rules.Decide(&q, found, true)
	if len(decision.Addrs) < len(found) {
		d.scope = s.route.cfg.Name + "/" + decision.Rule
	}
	return decision, nil
}

// lookUp looks up a name that a client asks for, when it is the turn of the client's
// source. A client that asks for thousands of names that no server answers uses up
// neither the descriptors nor the lookups of other clients.
func (s *session) lookUp(ctx context.Context, r *resolver, host string) ([]netip.Addr, error) {
	if err := s.server.lookups.take(ctx, s.downstream.source()); err != nil {
		return nil, &net.DNSError{Err: "no turn within the time: too many lookups wait for an answer", Name: host, IsTimeout: true, UnwrapErr: err}
	}
	defer s.server.lookups.giveBack()
	return r.lookup(ctx, host)
}

// lookUpTimeout bounds a lookup before the upstream is known: by lookupTimeout, or by
// the timeout that the client hints ask for if that is shorter.
func (s *session) lookUpTimeout() time.Duration {
	if hint := s.downstream.hints.Timeout; hint > 0 {
		return min(hint, lookupTimeout)
	}
	return lookupTimeout
}

// ruled records which rule has decided.
func (s *session) ruled(d *policy.Decision) {
	s.note(func(r *outcome.Record) { r.Rule = d.Rule })
	if f := s.server.opts.Observer.Ruled; f != nil {
		f(s.route.cfg.Name, d.Rule, d.Verdict)
	}
}

// choose sets the named upstream as the session's, and returns what to connect to and
// how.
func (s *session) choose(name string, d *destination) (w want, failure *outcome.Error) {
	c := s.route.choices[name]
	s.upstream = c.upstream
	s.note(func(r *outcome.Record) { r.Upstream = name })
	if s.route.traffic != c.traffic {
		s.server.countAt(s, c.traffic)
	}
	var err error
	if w.header, err = s.proxyHeader(); err != nil {
		return w, &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.Internal, Err: err}
	}
	if w.connect, err = narrow(c.upstream.cfg.Connect, s.downstream.hints); err != nil {
		return w, &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.BadGreeting, Err: err}
	}
	w.noSpare = s.downstream.hints.NoPreconnect
	if c.upstream.visited != nil {
		if d.port == 0 {
			return w, &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.NoRoute, Err: fmt.Errorf("upstream %s dials what clients ask for, and this one has not asked for anything", name)}
		}
		w.to = &target{site: c.upstream.site(d), destination: d}
		s.note(func(r *outcome.Record) { r.Destination = w.to.site.endpoint.address }) // the same text, shared by all sessions
	}
	return w, nil
}

// accept tells the client, in the protocol of its request, that it is connected.
func (s *session) accept(ctx context.Context, r *request, conn *upstreamConn) error {
	ctx, cancel := task.WithTimeout(ctx, s.route.handshake())
	defer cancel()
	defer boundIO(ctx, s.downstream.conn)()
	local, _ := conn.raw.LocalAddr().(*net.TCPAddr)
	err := r.answer.accept(s.requestStream(ctx), local.AddrPort())
	if err == nil {
		return nil
	}
	reason := outcome.DownstreamLost
	switch {
	case isTimeout(err):
		reason = outcome.HandshakeTimeout
	case isReset(err):
		reason = outcome.DownstreamReset
	}
	e := &outcome.Error{Stage: outcome.StageAnswer, Reason: reason, Err: err}
	conn.abort(e)
	return e
}

// decline tells the client, in the protocol of its request, why it is not connected. It
// is best effort: the record has the reason anyway.
func (s *session) decline(ctx context.Context, r *request, failure *outcome.Error) {
	ctx, cancel := task.WithTimeout(ctx, answerTimeout)
	defer cancel()
	defer boundIO(ctx, s.downstream.conn)()
	if err := r.answer.refuse(s.downstream.stream(), s.forClient(failure)); err == nil {
		closeAfterReading(s.downstream.stream())
	}
}

// isOurs reports whether one of our sockets listens at an address.
func (s *Server) isOurs(to netip.AddrPort) bool {
	s.mu.Lock()
	listeners := s.listeners
	s.mu.Unlock()
	for _, l := range listeners {
		if at, ok := l.Addr().(*net.TCPAddr); ok && Reaches(to, unmapped(at)) {
			return true
		}
	}
	if s.opts.Guarded == nil {
		return false
	}
	for _, at := range s.opts.Guarded() {
		if Reaches(to, at) {
			return true
		}
	}
	return false
}

// Reaches reports whether a connection to the address to reaches the socket that is
// bound to the address at.
func Reaches(to, at netip.AddrPort) bool {
	switch {
	case to.Port() != at.Port():
		return false
	case !at.Addr().IsUnspecified() && !to.Addr().IsUnspecified(): // connecting to 0.0.0.0 means connecting to this host
		return to.Addr() == at.Addr()
	case to.Addr().IsUnspecified() || to.Addr().IsLoopback():
		return true
	}
	local, err := net.InterfaceAddrs()
	for _, a := range local {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(to.Addr().AsSlice()) {
			return true
		}
	}
	return err != nil // if the interfaces are unknown, assume that it does: a refusal is better than a loop
}
