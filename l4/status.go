package l4

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
)

// Bound is a listener's name and the address that it is bound to: "127.0.0.1:5432",
// "unix:/path".
type Bound struct {
	Name string `json:"name"`
	Addr string `json:"addr"`
}

// Listening returns the bound listeners, in the configuration's order.
func (s *Server) Listening() (out []Bound) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		out = append(out, Bound{l.route.Load().cfg.Name, l.addr})
	}
	return out
}

// ListenerStatus is a bound listener, and how its clients use TLS.
type ListenerStatus struct {
	Bound
	StartTLS string             `json:"starttls,omitempty"`
	TLS      *ListenerTLSStatus `json:"tls,omitempty"` // nil: clients speak plaintext
}

// ListenerTLSStatus is how a listener terminates its clients' TLS.
type ListenerTLSStatus struct {
	Identities []string `json:"identities"`
	// Client is "required" or "none"; Principals are the clients that are allowed.
	Client     string   `json:"client"`
	Principals []string `json:"principals,omitempty"`
	// IdentityError says why an identity cannot be used now; empty if all can.
	IdentityError string `json:"identity_error,omitempty"`
}

// Listeners returns the status of the bound listeners, in the configuration's order.
func (s *Server) Listeners() []ListenerStatus {
	s.mu.Lock()
	listeners := slices.Clone(s.listeners)
	s.mu.Unlock()
	var out []ListenerStatus
	for _, l := range listeners {
		cfg := &l.route.Load().cfg
		out = append(out, ListenerStatus{Bound: Bound{cfg.Name, l.addr}, StartTLS: cfg.StartTLS, TLS: cfg.TLS.status()})
	}
	return out
}

func (t *ServerTLS) status() *ListenerTLSStatus {
	if t == nil {
		return nil
	}
	st := &ListenerTLSStatus{Identities: t.Identities, Client: "required", Principals: t.Principals}
	if t.Anonymous {
		st.Client = "none"
	}
	if t.IdentityReady == nil {
		return st
	}
	if err := t.IdentityReady(); err != nil {
		st.IdentityError = err.Error()
	}
	return st
}

// Sessions returns the n newest live sessions, or all, the oldest first.
func (s *Server) Sessions(n int) (out []outcome.Record) {
	live := s.live()
	for _, sess := range live[max(0, len(live)-n):] {
		out = append(out, sess.snapshot())
	}
	return out
}

// Recent returns the n newest ended sessions, or all that are kept, the newest first.
func (s *Server) Recent(n int) []outcome.Record { return s.recent.List(n) }

// Kill resets the live session with that ID. By is the record's KilledBy. It returns
// false if there is none.
func (s *Server) Kill(id, by string) bool {
	seq, err := strconv.ParseUint(strings.TrimPrefix(id, s.prefix), 10, 64)
	if err != nil || !strings.HasPrefix(id, s.prefix) {
		return false
	}
	s.mu.Lock()
	sess := s.sessions[seq]
	s.mu.Unlock()
	if sess == nil {
		return false
	}
	sess.stop(errKilled(by))
	return true
}

// killSessionsOf stops the sessions whose relay is connected to the address.
func (s *Server) killSessionsOf(a *upstream.Address) {
	for _, sess := range s.live() {
		if sess.goesTo(a) {
			sess.stop(errAddressDown)
		}
	}
}

// Traffic returns what each listener has moved for each upstream.
func (s *Server) Traffic() []Traffic {
	out, index, live := s.totals()
	for _, l := range live { // without s.mu, which accepting needs
		up, down := l.session.bytes() // if the session has ended meanwhile, what it moved in total
		t := &out[index[l.traffic]]
		t.Up += up
		t.Down += down
	}
	slices.SortFunc(out, func(a, b Traffic) int {
		return strings.Compare(a.Listener+" "+a.Upstream, b.Listener+" "+b.Upstream)
	})
	return out
}

// counted is a live session and the traffic that counts it.
type counted struct {
	session *session
	traffic *traffic
}

// totals returns what ended sessions have moved, the index of each traffic in that, and
// the sessions that were live at the same moment.
func (s *Server) totals() (out []Traffic, index map[*traffic]int, live []counted) {
	s.mu.Lock()
	defer s.mu.Unlock()
	index, live = map[*traffic]int{}, make([]counted, 0, len(s.sessions))
	for key, t := range s.traffic {
		index[t] = len(out)
		out = append(out, Traffic{Listener: key.listener, Upstream: key.upstream, Active: t.active, Up: t.up, Down: t.down})
	}
	for _, sess := range s.sessions {
		live = append(live, counted{sess, sess.traffic})
	}
	return out, index, live
}

// Upstreams returns the status of the upstreams, in the configuration's order.
func (s *Server) Upstreams() []upstream.Status {
	s.mu.Lock()
	upstreams := slices.Clone(s.upstreams)
	active := map[string]int{}
	for key, t := range s.traffic {
		active[key.upstream] += t.active
	}
	s.mu.Unlock()
	var out []upstream.Status
	for _, u := range upstreams {
		st := u.Status()
		st.Active = active[st.Name]
		out = append(out, st)
	}
	return out
}

// Readiness reports whether traffic should be sent here, and if not, why.
type Readiness struct {
	Ready    bool     `json:"ready"`
	Draining bool     `json:"draining"`
	Waiting  []string `json:"waiting,omitempty"`
	// Warnings are what is wrong and keeps no traffic away. The server has none.
	Warnings []string `json:"warnings,omitempty"`
}

// Ready is true once every required upstream has been reached, while its identity and
// that of every TLS listener is valid and every unix socket has its file, until a
// drain. An outage after that does not change it: an outage belongs to the upstream,
// and would make all processes that share it unready at once.
func (s *Server) Ready() Readiness {
	r := Readiness{Draining: s.isDraining()}
	if r.Draining {
		r.Waiting = append(r.Waiting, "draining")
	}
	for _, u := range s.those(func(c *upstream.Config) bool { return c.Required }) {
		r.Waiting = append(r.Waiting, u.Status().Waiting()...)
	}
	r.Waiting = append(r.Waiting, s.listenersWaiting()...)
	r.Ready = len(r.Waiting) == 0
	return r
}

// TryUpstreams lets every upstream with Health.OnFailure that was not reached yet make a
// trial, or only the one of that name. Nothing else tries such an upstream before its
// first session. It does not wait for the results.
func (s *Server) TryUpstreams(name string) {
	for _, u := range s.those(func(c *upstream.Config) bool { return name == "" || c.Name == name }) {
		u.Try()
	}
}

// Trials returns a trial for each address of the upstream of that name; false: there is none.
func (s *Server) Trials(ctx context.Context, name string) (trials []upstream.Trial, ok bool) {
	all := s.those(func(c *upstream.Config) bool { return c.Name == name })
	if len(all) == 0 {
		return nil, false
	}
	return all[0].Trials(ctx), true
}

// those returns the upstreams whose configuration chosen accepts.
func (s *Server) those(chosen func(*upstream.Config) bool) []*upstream.Upstream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.upstreams), func(u *upstream.Upstream) bool { return !chosen(u.Config()) })
}

// listenersWaiting returns a message for each listener whose identity is not usable, and
// for each socket that no client can reach.
func (s *Server) listenersWaiting() (out []string) {
	s.mu.Lock()
	listeners, sockets := s.cfg.Listeners, s.listeners
	s.mu.Unlock()
	for _, l := range sockets {
		if l.isLost() {
			out = append(out, fmt.Sprintf("listener %s: the file of %s was removed or replaced, so that no client can connect; reload to make it anew", l.route.Load().cfg.Name, l.addr))
		}
	}
	for _, l := range listeners {
		if l.TLS == nil || l.TLS.IdentityReady == nil {
			continue
		}
		if err := l.TLS.IdentityReady(); err != nil {
			out = append(out, fmt.Sprintf("listener %s: %s: %v", l.Name, outcome.NoIdentity, err))
		}
	}
	return out
}
