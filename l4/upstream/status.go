package upstream

import (
	"fmt"
	"slices"
	"time"

	"ambassador/l4/outcome"
	"ambassador/policy"
)

// Status is the status of an upstream.
type Status struct {
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
	// LookupError says why the last lookup of the name failed; empty if it did not.
	// GoneSince is since when the name servers say that the name does not exist: after
	// a time its addresses are dropped.
	LookupError string     `json:"lookup_error,omitempty"`
	GoneSince   *time.Time `json:"gone_since,omitempty"`
	// Addresses are what the endpoint resolves to.
	Addresses []AddressStatus `json:"addresses"`
}

func (u *Upstream) Status() Status {
	at := u.reached.Load()
	st := Status{Name: u.cfg.Name, Required: u.cfg.Required, Reached: at != nil, ReachedAt: at,
		StartTLS: u.cfg.StartTLS, TLS: u.cfg.TLS != nil}
	if err := u.permit(); err != nil {
		st.IdentityError = err.Error()
	}
	for _, e := range u.endpoints {
		st.Endpoints = append(st.Endpoints, e.status())
	}
	if u.destinationCache != nil {
		u.destinationCache.tell(&st)
	}
	return st
}

// maxListed is the maximum number of destinations in the status of a dynamic upstream.
const maxListed = 100

func (v *destinationCache) tell(st *Status) {
	st.Dynamic, st.Breakers, st.Endpoints = true, map[string]int{}, []EndpointStatus{}
	for s := policy.Closed; s <= policy.Open; s++ {
		st.Breakers[s.String()] = 0
	}
	for _, cached := range v.list() {
		st.Destinations++
		state := cached.breaker.State()
		st.Breakers[state.String()]++
		if state != policy.Closed && len(st.Endpoints) < maxListed {
			st.Endpoints = append(st.Endpoints, cached.endpoint.status())
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	closed, open := v.evicted.Count()
	st.Destinations += closed + open
	st.Breakers[policy.Closed.String()] += closed
	st.Breakers[policy.Open.String()] += open
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
	if st.LookupError = e.lookup; !e.gone.IsZero() {
		gone := e.gone
		st.GoneSince = &gone
	}
	if st.LastReason == "" && e.lookup != "" {
		st.LastReason, st.LastError = e.lookupReason(), e.lookup
	}
	e.mu.Unlock()
	st.Addresses = []AddressStatus{}
	for _, m := range members {
		st.Addresses = append(st.Addresses, m.status())
	}
	return st
}

// Waiting returns the reasons why the upstream is not ready.
func (u Status) Waiting() []string {
	switch {
	case u.IdentityError != "":
		return []string{fmt.Sprintf("upstream %s: %s: %s", u.Name, outcome.NoIdentity, u.IdentityError)}
	case u.Reached:
		return nil
	}
	text := fmt.Sprintf("upstream %s: not reached yet", u.Name)
	if !slices.ContainsFunc(u.Endpoints, func(e EndpointStatus) bool { return e.LastReason != "" }) {
		text += "; no attempt was made yet"
	}
	for _, e := range u.Endpoints {
		if e.LastError != "" {
			text += fmt.Sprintf("; %s (%s)", e.LastError, e.LastReason)
		}
	}
	return []string{text}
}
