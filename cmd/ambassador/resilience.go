package main

import (
	"fmt"
	"time"

	"go.yaml.in/yaml/v4"

	"ambassador/l4"
	"ambassador/policy"
)

// The keys that say how an upstream's addresses are chosen, judged and spared.

// EndpointSection is one of an upstream's endpoints.
type EndpointSection struct {
	Address          string
	Weight, Priority int
}

// BreakerSection is an upstream's breaker.
type BreakerSection struct {
	Failures, Probes int
	Open, MaxOpen    time.Duration
}

// newUpstreamSection has the defaults that are not zero.
func newUpstreamSection(name string) *UpstreamSection {
	return &UpstreamSection{Name: name, Required: true,
		Breaker: BreakerSection{Failures: 5, Open: 5 * time.Second, MaxOpen: 30 * time.Second, Probes: 1}}
}

// endpointsField is a list of addresses, or of sections with one.
func (u *UpstreamSection) endpointsField() field {
	section := sectionSchema((&EndpointSection{}).fields())
	section["required"] = []string{"address"}
	item := map[string]any{"anyOf": []any{map[string]any{"type": "string"}, section}}
	return field{"endpoints", "Its addresses: HOST:PORT (a name, an IPv4 or an [IPv6] address) or unix:/path, or sections with an address, its weight and its priority.",
		map[string]any{"type": "array", "items": item, "minItems": 1}, u.decodeEndpoints}
}

func (e *EndpointSection) fields() []field {
	return []field{
		textField("address", "HOST:PORT or unix:/path.", &e.Address, checkEndpoint),
		intField("weight", "Its share of the sessions. Default 1.", &e.Weight, 1, 1000),
		intField("priority", "Its group: a higher one is used only when no address of a lower one can be. Default 0.", &e.Priority, 0, 1000),
	}
}

func (u *UpstreamSection) decodeEndpoints(d *decoder, n *yaml.Node, path string) {
	if n.Kind != yaml.SequenceNode {
		d.fail(n, path, "%s where a list is needed; write it in [brackets]", describe(n))
		return
	}
	if len(n.Content) == 0 {
		d.fail(n, path, "empty; give at least one HOST:PORT or unix:/path")
	}
	for i, item := range n.Content {
		at, e := fmt.Sprintf("%s[%d]", path, i), EndpointSection{}
		item = resolveAlias(item)
		d.at[at] = item
		if item.Kind == yaml.MappingNode {
			d.section(item, at, e.fields())
			if d.at[at+".address"] == nil {
				d.fail(item, at, "no address; write {address: HOST:PORT}")
			}
		} else {
			textField("address", "", &e.Address, checkEndpoint).decode(d, item, at)
		}
		u.Endpoints = append(u.Endpoints, e)
	}
}

// resilienceFields are the keys of an upstream that this file is about.
func (u *UpstreamSection) resilienceFields() []field {
	return []field{
		textField("srv", "Instead of endpoints: an SRV name like _postgresql._tcp.db.internal, whose records have targets, ports, weights and priorities.", &u.SRV, checkSRV),
		enumField("balance", "How an address is chosen, always by weight: round_robin takes turns, random takes the less busy of two drawn, least_connections the least busy. Default round_robin.",
			&u.Balance, "round_robin", "random", "least_connections"),
		durationField("resolve", "How often names are looked up again; a failure keeps the last answer. Default 30s.", &u.Resolve, time.Second),
		sectionField("breaker", "Leaves an address alone that fails.", []field{
			intField("failures", "How many failed attempts in a row open it; 0 turns it off. Default 5.", &u.Breaker.Failures, 0, 1000),
			durationField("open", "How long it stays open at first, which doubles with each failed trial. Default 5s.", &u.Breaker.Open, 100*time.Millisecond),
			durationField("max_open", "The most that open grows to. Default 30s.", &u.Breaker.MaxOpen, 100*time.Millisecond),
			intField("probes", "Trials at a time after that; the first success closes it. Default 1.", &u.Breaker.Probes, 1, 1000)}),
		sectionField("limits", "Limits of this upstream.", []field{
			intField("connections", "The most connections to each address; a session beyond them is refused at once. Default 0: none.", &u.MaxConnections, 0, 1<<30)}),
	}
}

// checkSRV knows a name from an address.
func checkSRV(s string) error {
	if s == "" || checkHostPort(s) == nil {
		return fmt.Errorf("%q is no SRV name; write one like _postgresql._tcp.db.internal, the records have the ports", s)
	}
	return nil
}

// validateResilience finds what no key by itself shows.
func (u *UpstreamSection) validateResilience(d *decoder, path string) {
	hasEndpoints, hasSRV := d.at[path+".endpoints"] != nil, d.at[path+".srv"] != nil
	switch {
	case !hasEndpoints && !hasSRV:
		d.failAt(path, `no endpoints; give at least one: endpoints: ["HOST:PORT"]`)
	case hasEndpoints && hasSRV:
		d.failAt(path+".srv", "endpoints say where it is already; remove one of them")
	case hasSRV && u.TLS != nil && u.TLS.ServerName == "" && len(u.TLS.Principals) == 0 && !u.TLS.UnsafeSkipVerify:
		d.failAt(path+".srv", "the targets' names come from DNS, which proves nothing; set tls.server_name or tls.principals")
	}
	if b := u.Breaker; b.Failures > 0 && b.MaxOpen < b.Open {
		d.failAt(path+".breaker.max_open", "%s is shorter than breaker.open (%s); make one longer or the other shorter", b.MaxOpen, b.Open)
	}
}

// resilience translates the keys of this file for l4, and gives the text of all
// that they say.
func (u *UpstreamSection) resilience(cfg *l4.UpstreamConfig) (key string) {
	for _, e := range u.Endpoints {
		cfg.Endpoints = append(cfg.Endpoints, l4.EndpointConfig{Address: e.Address, Weight: e.Weight, Priority: e.Priority})
	}
	if u.SRV != "" {
		cfg.Endpoints = []l4.EndpointConfig{{Address: "srv:" + u.SRV}}
	}
	cfg.Balance = map[string]policy.Method{"random": policy.RandomTwo, "least_connections": policy.LeastConnections}[u.Balance]
	cfg.Resolve, cfg.MaxConnections = u.Resolve, u.MaxConnections
	b := u.Breaker
	cfg.Breaker = policy.BreakerConfig{Failures: b.Failures, Open: b.Open, MaxOpen: b.MaxOpen, Probes: b.Probes}
	return fmt.Sprintf("%#v", []any{cfg.Endpoints, cfg.Balance, cfg.Resolve, cfg.MaxConnections, cfg.Breaker})
}
