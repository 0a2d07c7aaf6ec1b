package upstream

import (
	"context"
	"errors"

	"ambassador/l4/lookup"
	"ambassador/l4/outcome"
)

// discovered makes e an endpoint whose addresses d pushes. Sessions without an address
// wait for its first answer.
func (e *endpoint) discovered(d *lookup.Discovery) *endpoint {
	e.discovery, e.host, e.followed = d, d.Host, make(chan struct{}, 1)
	e.flight = &flight{done: make(chan struct{})}
	return e
}

// keepFollowing follows e until ctx ends, as soon as nothing else follows it.
func (u *Upstream) keepFollowing(ctx context.Context, e *endpoint) {
	select {
	case e.followed <- struct{}{}:
		defer func() { <-e.followed }()
		u.guard.Keep(ctx, PartResolver, func() { u.follow(ctx, e) })
	case <-ctx.Done():
	}
}

// follow keeps the addresses of e as its source says, until ctx ends. The server waits
// for it.
func (u *Upstream) follow(ctx context.Context, e *endpoint) {
	e.discovery.Follow(ctx, func(all []lookup.Discovered, none error) {
		found := lookup.Places{}
		for _, d := range all {
			found.All = append(found.All, lookup.Place{Addr: d.Addr, Weight: e.weight, Priority: e.priority, Distance: min(d.Distance, lookup.MaxDistance), Other: d.Other})
		}
		u.learned(e, found)
		if len(all) > 0 {
			none = nil
		} else {
			none = &outcome.Refusal{Stage: outcome.StagePermit, Reason: outcome.NoEndpoint, Text: e.address + ": " + none.Error(), Public: "no address can be used"}
		}
		u.told(e, none)
	}, func(err error) {
		if ctx.Err() == nil {
			u.told(e, &outcome.DiscoveryError{Endpoint: e.address, Err: err})
		}
	})
}

// told records the last word of the source, which sessions that wait for an address get.
func (u *Upstream) told(e *endpoint, err error) {
	e.mu.Lock()
	before := e.lookup
	if e.lookup = ""; err != nil {
		e.lookup = err.Error()
	}
	select {
	case <-e.flight.done:
		e.flight = &flight{e.flight.done, err}
	default: // the first answer
		e.flight.err = err
		close(e.flight.done)
	}
	known, now := len(e.members), e.lookup
	e.mu.Unlock()
	log := u.log.With("upstream", u.cfg.Name, "endpoint", e.address)
	switch {
	case before == now:
	case now != "":
		log.Warn("discovery has no new addresses", "cause", now, "addresses_kept", known)
	default:
		log.Info("discovery works again")
	}
}

// lookupReason is the reason of the error of the last lookup, with mu held.
func (e *endpoint) lookupReason() outcome.Reason {
	var none *outcome.Refusal
	if e.discovery != nil && errors.As(e.flight.err, &none) {
		return none.Reason
	}
	return outcome.DNS
}

// followForTrials lets the sources of discovered endpoints answer until ctx ends, unless
// they are followed already: the answers of two would mix.
func (u *Upstream) followForTrials(ctx context.Context) {
	for _, e := range u.endpoints {
		if e.discovery != nil && len(e.followed) == 0 {
			go u.keepFollowing(ctx, e) // ends with ctx
		}
	}
}
