package config

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"ambassador/cmd/ambassador/internal/kubernetes"
	"ambassador/l4/starttls"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// The keys that say how an upstream's addresses are chosen, judged and spared.

// EndpointSection is one of an upstream's endpoints.
type EndpointSection struct {
	Address          string // with Kubernetes, "kubernetes:" and that
	Kubernetes       string // a port of a Service; empty: Address is looked up
	Weight, Priority int
}

// BreakerSection is an upstream's breaker.
type BreakerSection struct {
	Failures, Probes int
	Open, MaxOpen    time.Duration
}

// HealthSection is an upstream's health.
type HealthSection struct {
	Interval, Timeout, IdleInterval time.Duration
	Rise, Fall                      int
	Send, Expect                    string
	User, PasswordFile              string
	HTTP                            HTTPSection
	Probe                           string
	KillOnDown                      bool
}

// HTTPSection is an upstream's health.http: none where Port is zero.
type HTTPSection struct {
	Port, Status int
	Path         string
}

// ResolveSection is an upstream's resolve.
type ResolveSection struct{ Every, KeepGone time.Duration }

// PreconnectSection is an upstream's preconnect.
type PreconnectSection struct {
	Connections int
	MaxAge      time.Duration
}

// endpointsField is a list of addresses, or of sections with one.
func (u *UpstreamSection) endpointsField() field {
	schema := func() map[string]any {
		section := sectionSchema((&EndpointSection{}).fields())
		section["oneOf"] = []any{map[string]any{"required": []string{"address"}}, map[string]any{"required": []string{"kubernetes"}}}
		item := map[string]any{"anyOf": []any{map[string]any{"type": "string"}, section}}
		return map[string]any{"type": "array", "items": item, "minItems": 1}
	}
	return field{key: "endpoints", doc: "Its addresses: HOST:PORT (a name, an IPv4 or an [IPv6] address) or unix:/path, or sections with an address, its weight and its priority. In place of address, kubernetes follows the endpoints of a Service.",
		schema: schema, decode: u.decodeEndpoints}
}

func (e *EndpointSection) fields() []field {
	return []field{
		textField("address", "HOST:PORT or unix:/path.", &e.Address, checkEndpoint),
		textField("kubernetes", "Instead of address: namespace/service:port, a port of a Kubernetes Service by name or number, whose ready endpoints are followed at the API server. By default the server's certificate must be for service.namespace.svc.", &e.Kubernetes, kubernetes.CheckService),
		intField("weight", "Its share of the sessions.", &e.Weight, 1, 1000).or(1),
		intField("priority", "Its group: a higher one is used only when no address of a lower one can be.", &e.Priority, 0, 1000).or(0),
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
			e.validate(d, item, at)
		} else {
			textField("address", "", &e.Address, checkEndpoint).decode(d, item, at)
		}
		e.Address = canonicalEndpoint(e.Address)
		u.Endpoints = append(u.Endpoints, e)
	}
}

// validate wants one of address and kubernetes.
func (e *EndpointSection) validate(d *decoder, n *yaml.Node, at string) {
	hasAddress, hasKubernetes := d.at[at+".address"] != nil, d.at[at+".kubernetes"] != nil
	switch {
	case hasAddress && hasKubernetes:
		d.failAt(at+".kubernetes", "an endpoint is an address or a Service; remove one of them, or write two endpoints")
	case hasKubernetes:
		e.Address = kubernetesPrefix + e.Kubernetes
	case !hasAddress:
		d.fail(n, at, `no address; write {address: HOST:PORT}, or {kubernetes: "namespace/service:port"}`)
	}
}

// kubernetesPrefix begins the name of an endpoint that is a Service.
const kubernetesPrefix = "kubernetes:"

// resilienceFields are the keys of an upstream that this file is about.
func (u *UpstreamSection) resilienceFields() []field {
	return []field{
		textField("srv", "Instead of endpoints: an SRV name like _postgresql._tcp.db.internal, whose records have targets, ports, weights and priorities.", &u.SRV, checkSRV),
		enumField("balance", "How an address is chosen, always by weight: round_robin takes turns, random takes the less busy of two drawn, least_connections the least busy.",
			&u.Balance, "round_robin", "random", "least_connections").or("round_robin"),
		u.resolveField(),
		sectionField("breaker", "Leaves an address alone that fails.", []field{
			intField("failures", "How many failed attempts in a row open it; 0 turns it off.", &u.Breaker.Failures, 0, 1000).or(5),
			durationField("open", "How long it stays open at first, which doubles with each failed trial.", &u.Breaker.Open, 100*time.Millisecond).or(5 * time.Second),
			durationField("max_open", "The most that open grows to.", &u.Breaker.MaxOpen, 100*time.Millisecond).or(30 * time.Second),
			intField("probes", "Trials at a time after that; the first success closes it.", &u.Breaker.Probes, 1, 1000).or(1)}),
		sectionField("health", "How the health of each address is told; an unhealthy one gets no sessions, unless nobody else is left and it was well when it was seen last.", u.Health.fields()),
		sectionField("preconnect", "Connections that are kept ready for the client's first byte: dialled, and through STARTTLS and TLS. Not with starttls: mysql or xmpp, where TLS begins after that byte.", []field{
			intField("connections", "How many, over all addresses.", &u.Preconnect.Connections, 0, 10000).or(0),
			durationField("max_age", "The age at which one is replaced; let it be shorter than what the server allows for silence before a login.", &u.Preconnect.MaxAge, 100*time.Millisecond).or(upstream.DefaultPreconnectAge)}),
		sectionField("limits", "Limits of this upstream.", []field{
			intField("connections", "The most connections to each address; a session beyond them is refused at once.", &u.MaxConnections, 0, 1<<30).or(0, ": none")}),
	}
}

// resolveField is a section, or the duration that is its key every.
func (u *UpstreamSection) resolveField() field {
	every := durationField("every", "How often names are looked up again, and sooner while none of the addresses can be reached. A failed lookup keeps the last answer.", &u.Resolve.Every, time.Second).or(upstream.DefaultResolve)
	section := sectionField("resolve", "How names are looked up again. A duration alone is every.", []field{every,
		durationField("keep_gone", "How long the addresses of a name stay after the name servers said that it does not exist any more. They take new sessions for as long.", &u.Resolve.KeepGone, 0).or(upstream.DefaultKeepGone)})
	fields := section.decode
	section.decode = func(d *decoder, n *yaml.Node, path string) {
		if n.Kind == yaml.MappingNode {
			fields(d, n, path)
			return
		}
		every.decode(d, n, path)
	}
	object := section.schema
	section.schema = func() map[string]any { return map[string]any{"anyOf": []any{every.schema(), object()}} }
	return section
}

func (h *HealthSection) fields() []field {
	return []field{
		durationField("interval", "How often the verdict is brought up to date: by what sessions saw meanwhile, else by a probe that goes the way of a session. 0s: off.", &h.Interval, 0).or(5 * time.Second),
		durationField("timeout", fmt.Sprintf("Bounds a probe, and each question of http. Default: what an attempt of a session to that address may take, but at least %s; %[1]s for the questions of user, send, expect and http.", upstream.DefaultHealthTimeout), &h.Timeout, 10*time.Millisecond),
		intField("rise", "How many that pass in a row make an unhealthy address healthy.", &h.Rise, 1, 1000).or(2),
		intField("fall", "How many that fail in a row make an address unhealthy.", &h.Fall, 1, 1000).or(3),
		durationField("idle_interval", "How often a healthy address without sessions is probed, unless send, expect or http ask it at every interval.", &h.IdleInterval, 0).or(time.Minute),
		secretField("send", "What a probe sends once it is connected; a secret, which is not printed. Default: nothing.", &h.Send),
		textField("expect", "What the server's answer, or its greeting, must contain. Default: nothing.", &h.Expect, nil),
		textField("user", "With starttls: mysql, as whom a probe logs in and quits, so that the server sees no failed client. It needs no privileges. Default: no login, and a healthy server is not probed.", &h.User, nil),
		textField("password_file", "File with that user's password, and nothing else; read for each probe. Default: no password.", &h.PasswordFile, nil),
		sectionField("http", "A question over plain HTTP to another port of the address's host, beside the connection.", []field{
			intField("port", "Its port.", &h.HTTP.Port, 1, 65535),
			queryField("path", `What is asked for; what is behind a ? is a secret.`, &h.HTTP.Path, checkPath).or("/"),
			intField("status", "The status that is well.", &h.HTTP.Status, 100, 599).or(200)}),
		enumField("probe", "When an address is probed that no session has used for a while: always, or on_failure, only after sessions failed at it. With on_failure a sole address is never probed, and before the first session the upstream is tried only when readiness is asked for.",
			&h.Probe, "always", "on_failure").or("always"),
		boolField("kill_on_down", "Ends the sessions of an address that becomes unhealthy.", &h.KillOnDown).or(false),
	}
}

func checkPath(s string) error {
	if u, err := url.Parse("http://h:1" + s); err != nil || !strings.HasPrefix(s, "/") || u.Fragment != "" {
		return fmt.Errorf("%q is no path; write one like /primary", s)
	}
	return nil
}

// leastHealthInterval keeps a slip of the pen from flooding a server.
const leastHealthInterval = 10 * time.Millisecond

// asksMore says whether a probe does more than to connect.
func (h *HealthSection) asksMore() bool { return h.Send != "" || h.Expect != "" || h.User != "" }

// validate finds what no key of health by itself shows.
func (h *HealthSection) validate(d *decoder, path string, u *UpstreamSection) {
	if d.at[path] != nil && h.Interval == 0 && len(d.at[path].Content) > 2 {
		d.failAt(path+".interval", "0s turns health off, so the other keys have no meaning; remove them, or give an interval")
	}
	if h.Interval > 0 && h.Interval < leastHealthInterval {
		d.failAt(path+".interval", "%s is too short; the least is %s, and 0s turns health off", h.Interval, leastHealthInterval)
	}
	if h.Probe == "on_failure" && (h.asksMore() || d.at[path+".http"] != nil) {
		d.failAt(path+".probe", "on_failure probes no address that works, so send, expect, http and user have no meaning; remove them, or use always")
	}
	p, _ := starttls.Lookup(u.StartTLS)
	switch {
	case h.User == "" && h.PasswordFile != "":
		d.failAt(path+".password_file", "whose? give user too, or remove it")
	case h.User != "" && (p == nil || !p.LogsIn):
		d.failAt(path+".user", "probes log in with starttls: mysql only; remove user, or set starttls")
	case h.User != "" && (h.Send != "" || h.Expect != ""):
		d.failAt(path+".user", "a probe that logs in quits then; remove user, or send and expect")
	}
	if d.at[path+".http"] == nil {
		return
	}
	if h.HTTP.Port == 0 && d.at[path+".http.port"] == nil {
		d.failAt(path+".http", "no port; give the one that answers HTTP")
	}
	for _, e := range u.Endpoints {
		if strings.HasPrefix(e.Address, "unix:") {
			d.failAt(path+".http", "%s has no host that could be asked; remove http", e.Address)
		}
	}
}

// notes compares the timeout of probes with that of sessions.
func (h *HealthSection) notes(u *UpstreamSection) []string {
	most, key := u.Connect.AttemptTimeout, "connect.attempt_timeout"
	if most == 0 {
		most, key = u.Connect.Timeout, "connect.timeout"
	}
	if u.Dynamic || h.Interval == 0 || h.Timeout == 0 || h.Timeout >= most {
		return nil
	}
	return []string{fmt.Sprintf("upstreams.%s.health.timeout: %s is shorter than %s (%s): a server that answers between the two is unhealthy, and gets no sessions, although they would reach it; raise or remove health.timeout if the server may be slow", u.Name, h.Timeout, key, most)}
}

// config translates health for l4.
func (h *HealthSection) config(p Parts) upstream.HealthConfig {
	out := upstream.HealthConfig{Interval: h.Interval, Timeout: h.Timeout, Rise: h.Rise, Fall: h.Fall, IdleInterval: h.IdleInterval,
		Send: h.Send, Expect: h.Expect, KillOnDown: h.KillOnDown, OnFailure: h.Probe == "on_failure"}
	if h.User != "" {
		section := *h
		out.LogIn = func() (user, password string, err error) { return p.Login(section) }
	}
	if h.HTTP.Port != 0 {
		question := h.HTTP
		out.Check = func(ctx context.Context, host netip.Addr) error { return p.Ask(ctx, question, host) }
	}
	return out
}

// limitsField is a listener's limits.
func (l *ListenerSection) limitsField() field {
	return sectionField("limits", "Limits of its sessions; one beyond them is refused at once, with the reason limit. 0 is none.", []field{
		intField("connections", "The most at a time.", &l.Limits.Connections, 0, 1<<30).or(0),
		intField("per_client", "The most at a time from one client: an IPv4 address, or a /64 of IPv6.", &l.Limits.PerClient, 0, 1<<30).or(0),
		intField("connections_per_second", "The most that begin in a second; as many may begin at once.", &l.Limits.PerSecond, 0, 1<<30).or(0)})
}

// validateResilience finds what no key by itself shows.
func (u *UpstreamSection) validateResilience(d *decoder, path string) {
	hasEndpoints, hasSRV := d.at[path+".endpoints"] != nil, d.at[path+".srv"] != nil
	switch {
	case u.Dynamic:
		u.validateDynamic(d, path)
	case !hasEndpoints && !hasSRV:
		d.failAt(path, `no endpoints; give at least one: endpoints: ["HOST:PORT"], or dynamic: true for where the client wants to go`)
	case hasEndpoints && hasSRV:
		d.failAt(path+".srv", "endpoints say where it is already; remove one of them")
	case hasSRV && u.TLS != nil && u.TLS.ServerName == "" && len(u.TLS.Principals) == 0 && !u.TLS.UnsafeSkipVerify:
		d.failAt(path+".srv", "the targets' names come from DNS, which proves nothing; set tls.server_name or tls.principals")
	}
	if !u.Dynamic {
		u.Health.validate(d, path+".health", u)
	}
	if p, ok := starttls.Lookup(u.StartTLS); ok && p.NeedsClient && u.Preconnect.Connections > 0 {
		d.failAt(path+".preconnect.connections", "with starttls: %s TLS begins after the client's first message, so that no connection can be ready before; remove preconnect", p.Name)
	}
	if b := u.Breaker; b.Failures > 0 && b.MaxOpen < b.Open {
		d.failAt(path+".breaker.max_open", "%s is shorter than breaker.open (%s); make one longer or the other shorter", b.MaxOpen, b.Open)
	}
}

// resilience translates the keys of this file for l4.
func (u *UpstreamSection) resilience(cfg *upstream.Config, p Parts) {
	for _, e := range u.Endpoints {
		endpoint := upstream.EndpointConfig{Address: e.Address, Weight: e.Weight, Priority: e.Priority}
		if service, err := kubernetes.ParseService(e.Kubernetes); err == nil && p.Discover != nil {
			endpoint.Discovery = p.Discover(service)
		}
		cfg.Endpoints = append(cfg.Endpoints, endpoint)
	}
	if u.SRV != "" {
		cfg.Endpoints = []upstream.EndpointConfig{{Address: "srv:" + canonicalName(u.SRV)}}
	}
	cfg.Balance = map[string]policy.Method{"random": policy.RandomTwo, "least_connections": policy.LeastConnections}[u.Balance]
	cfg.Resolve, cfg.MaxConnections, cfg.Health = u.Resolve.Every, u.MaxConnections, u.Health.config(p)
	if cfg.KeepGone = u.Resolve.KeepGone; cfg.KeepGone == 0 {
		cfg.KeepGone = -1 // 0s: not at all
	}
	cfg.Preconnect = upstream.PreconnectConfig{Connections: u.Preconnect.Connections, MaxAge: u.Preconnect.MaxAge}
	b := u.Breaker
	cfg.Breaker = policy.BreakerConfig{Failures: b.Failures, Open: b.Open, MaxOpen: b.MaxOpen, Probes: b.Probes}
}
