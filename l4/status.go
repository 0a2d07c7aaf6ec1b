package l4

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"ambassador/l4/outcome"
	"ambassador/policy"
)

// Bound is a listener's name and the address that it is bound to: "127.0.0.1:5432",
// "unix:/path".
type Bound struct {
	Name string `json:"name"`
	Addr string `json:"addr"`
}

// Listening returns the bound listeners, in the configuration's order.
func (s *Server) Listening() []Bound {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Bound
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

// Sessions returns the live sessions, the oldest first.
func (s *Server) Sessions() []outcome.Record {
	var out []outcome.Record
	for _, sess := range s.live() {
		out = append(out, sess.snapshot())
	}
	return out
}

// Recent returns the ended sessions that are kept, the newest first.
func (s *Server) Recent() []outcome.Record { return s.recent.list() }

// Kill resets the live session with that ID. It returns false if there is none.
func (s *Server) Kill(id string) bool {
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
	sess.stop(errKilled)
	return true
}

// killSessionsOf stops the sessions whose relay is connected to the address.
func (s *Server) killSessionsOf(a *address) {
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

// UpstreamStatus is the status of an upstream.
type UpstreamStatus struct {
	Name     string `json:"name"`
	Required bool   `json:"required"`
	// Reached reports whether the upstream was ever reached; ReachedAt is the first
	// time.
	Reached   bool       `json:"reached"`
	ReachedAt *time.Time `json:"reached_at,omitempty"`
	Active    int        `json:"active"`
	StartTLS  string     `json:"starttls,omitempty"`
	TLS       bool       `json:"tls"`
	// IdentityError says why our identity cannot be used; empty if it can.
	IdentityError string           `json:"identity_error,omitempty"`
	Endpoints     []EndpointStatus `json:"endpoints"`
	// Dynamic upstreams dial the destinations that clients ask for. Destinations is the
	// number of remembered destinations, Breakers the number of them in each breaker
	// state. Endpoints are those whose breaker is not closed, at most a hundred.
	Dynamic      bool           `json:"dynamic,omitempty"`
	Destinations int            `json:"destinations,omitempty"`
	Breakers     map[string]int `json:"breakers,omitempty"`
}

// EndpointStatus is the result of the last attempts at an endpoint. LastReason is that
// of the last attempt: outcome.OK for success, empty before the first.
type EndpointStatus struct {
	Endpoint    string         `json:"endpoint"`
	LastAddress string         `json:"last_address,omitempty"`
	LastSuccess *time.Time     `json:"last_success,omitempty"`
	LastFailure *time.Time     `json:"last_failure,omitempty"`
	LastReason  outcome.Reason `json:"last_reason,omitempty"`
	LastError   string         `json:"last_error,omitempty"`
	// Addresses are what the endpoint resolves to.
	Addresses []AddressStatus `json:"addresses"`
}

// Upstreams returns the status of the upstreams, in the configuration's order.
func (s *Server) Upstreams() []UpstreamStatus {
	s.mu.Lock()
	upstreams := slices.Clone(s.upstreams)
	active := map[string]int{}
	for key, t := range s.traffic {
		active[key.upstream] += t.active
	}
	s.mu.Unlock()
	var out []UpstreamStatus
	for _, u := range upstreams {
		st := u.status()
		st.Active = active[st.Name]
		out = append(out, st)
	}
	return out
}

func (u *Upstream) status() UpstreamStatus {
	at := u.reached.Load()
	st := UpstreamStatus{Name: u.cfg.Name, Required: u.cfg.Required, Reached: at != nil, ReachedAt: at,
		StartTLS: u.cfg.StartTLS, TLS: u.cfg.TLS != nil}
	if err := u.permit(); err != nil {
		st.IdentityError = err.Error()
	}
	for _, e := range u.endpoints {
		st.Endpoints = append(st.Endpoints, e.status())
	}
	if u.visited != nil {
		u.visited.tell(&st)
	}
	return st
}

// maxTold is the maximum number of destinations in the status of a dynamic upstream.
const maxTold = 100

func (v *visited) tell(st *UpstreamStatus) {
	st.Dynamic, st.Breakers, st.Endpoints = true, map[string]int{}, []EndpointStatus{}
	for s := policy.Closed; s <= policy.Open; s++ {
		st.Breakers[s.String()] = 0
	}
	for _, site := range v.list() {
		st.Destinations++
		state := site.breaker.State()
		st.Breakers[state.String()]++
		if state != policy.Closed && len(st.Endpoints) < maxTold {
			st.Endpoints = append(st.Endpoints, site.endpoint.status())
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, f := range v.faded {
		st.Destinations++
		state := policy.Closed
		if f.breaker().Open {
			state = policy.Open
		}
		st.Breakers[state.String()]++
	}
}

func (e *endpoint) status() EndpointStatus {
	e.mu.Lock()
	st, members := e.last, e.members
	if at := e.succeeded; !at.IsZero() {
		st.LastSuccess = &at
	}
	if at := e.failed; !at.IsZero() {
		st.LastFailure = &at
	}
	if st.LastReason == "" && e.lookup != "" {
		st.LastReason, st.LastError = outcome.DNS, e.lookup
	}
	e.mu.Unlock()
	st.Addresses = []AddressStatus{}
	for _, m := range members {
		st.Addresses = append(st.Addresses, m.status())
	}
	return st
}

// Readiness reports whether traffic should be sent here, and if not, why.
type Readiness struct {
	Ready    bool     `json:"ready"`
	Draining bool     `json:"draining"`
	Waiting  []string `json:"waiting,omitempty"`
}

// Ready is true once every required upstream has been reached, while its identity and
// that of every TLS listener is valid, until a drain. An outage after that does not
// change it: an outage belongs to the upstream, and would make all processes that share
// it unready at once.
func (s *Server) Ready() Readiness {
	r := Readiness{Draining: s.isDraining()}
	if r.Draining {
		r.Waiting = append(r.Waiting, "draining")
	}
	for _, u := range s.required() {
		r.Waiting = append(r.Waiting, u.status().waiting()...)
	}
	r.Waiting = append(r.Waiting, s.listenersWaiting()...)
	r.Ready = len(r.Waiting) == 0
	return r
}

// required returns the upstreams that count for readiness.
func (s *Server) required() (out []*Upstream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.upstreams {
		if u.cfg.Required {
			out = append(out, u)
		}
	}
	return out
}

// listenersWaiting returns a message for each listener whose identity is not usable.
func (s *Server) listenersWaiting() (out []string) {
	s.mu.Lock()
	listeners := s.cfg.Listeners
	s.mu.Unlock()
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

// waiting returns the reasons why the upstream is not ready.
func (u UpstreamStatus) waiting() []string {
	switch {
	case u.IdentityError != "":
		return []string{fmt.Sprintf("upstream %s: %s: %s", u.Name, outcome.NoIdentity, u.IdentityError)}
	case u.Reached:
		return nil
	}
	text := fmt.Sprintf("upstream %s: not reached yet", u.Name)
	for _, e := range u.Endpoints {
		if e.LastError != "" {
			text += fmt.Sprintf("; %s (%s)", e.LastError, e.LastReason)
		}
	}
	return []string{text}
}
