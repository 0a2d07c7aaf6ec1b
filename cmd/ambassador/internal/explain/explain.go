package explain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/bind"
	"ambassador/l4/nameserver"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

// Question is what `check --explain` asks about: one connection.
type Question struct {
	text     string
	has      map[string]bool // the keys that were given
	listener string
	query    policy.Query
	absolute bool         // the name in dest ends in the root's dot
	addrs    []netip.Addr // of addr
	expect   string       // what the rules must decide; empty: anything
	file     *config.File
	of       *config.ListenerSection // that it is about
}

// Ask reads 'KEY=VALUE …', a question about f. The error says how to ask.
func Ask(f *config.File, text string) (*Question, error) {
	q, err := parseQuestion(text)
	if err != nil {
		return nil, err
	}
	q.file = f
	if q.of, err = q.about(f); err != nil {
		return nil, err
	}
	return &q, q.fits(q.of)
}

// questionKeys are the keys of a question.
func questionKeys() []string {
	return []string{"dest", "client", "user", "uid", "principal", "sni", "listener", "addr", "expect"}
}

// parseQuestion reads 'KEY=VALUE …'. The error names the key, and how to fix it.
func parseQuestion(text string) (Question, error) {
	q := Question{text: text, has: map[string]bool{}}
	for part := range strings.FieldsSeq(text) {
		key, value, ok := strings.Cut(part, "=")
		switch {
		case !ok || !slices.Contains(questionKeys(), key):
			return q, fmt.Errorf("%q: write KEY=VALUE with spaces between; there are %s", part, strings.Join(questionKeys(), ", "))
		case q.has[key]:
			return q, fmt.Errorf("%s is given twice; a question is about one connection", key)
		case value == "":
			return q, fmt.Errorf("%s has no value; give one, or leave it out", key)
		}
		q.has[key] = true
		if err := q.set(key, value); err != nil {
			return q, fmt.Errorf("%s: %w", part, err)
		}
	}
	return q, nil
}

func (q *Question) set(key, value string) (err error) {
	switch key {
	case "dest":
		return q.setDestination(value)
	case "client":
		q.query.Client, err = parseAddress(value)
	case "user":
		q.query.User = value
	case "uid":
		if err := config.CheckUID(value); err != nil {
			return err
		}
		n, _ := strconv.ParseUint(value, 10, 32) // checked
		q.query.UID, q.query.HasUID = uint32(n), true
	case "principal":
		q.query.Principal = value
	case "sni":
		q.query.SNI, _, err = policy.ParseHost(value)
	case "listener":
		q.listener = value
	case "expect":
		q.expect = value
		return checkExpect(value)
	case "addr":
		for s := range strings.SplitSeq(value, ",") {
			addr, err := parseAddress(s)
			if err != nil {
				return err
			}
			q.addrs = append(q.addrs, addr)
		}
	}
	return err
}

func (q *Question) setDestination(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return errors.New("write HOST:PORT, like db.internal:5432 or [::1]:443")
	}
	ports, err := policy.ParsePortRange(port)
	if err != nil || ports.First != ports.Last {
		return fmt.Errorf("%q is no port; write a number from 1 to 65535", port)
	}
	q.query.Port = ports.First
	q.query.Host, q.query.Addr, err = policy.ParseHost(host)
	q.absolute = policy.IsAbsolute(host)
	return err
}

func parseAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return a, fmt.Errorf("%q is no IP address", s)
	}
	return a.Unmap(), nil
}

// about is the listener that the question is about: the only one with rules, where
// it names none.
func (q *Question) about(f *config.File) (*config.ListenerSection, error) {
	var ruled []*config.ListenerSection
	for _, l := range f.Listeners {
		if len(l.Rules) > 0 {
			ruled = append(ruled, l)
		}
	}
	var names []string
	for _, l := range ruled {
		names = append(names, l.Name)
	}
	if i := slices.Index(names, q.listener); i >= 0 {
		return ruled[i], nil
	}
	switch {
	case len(ruled) == 0:
		return nil, errors.New("no listener of the file has rules, so that there is nothing to explain")
	case q.listener != "":
		return nil, fmt.Errorf("listener=%s: there is no such listener with rules; there is %s", q.listener, strings.Join(names, ", "))
	case len(ruled) > 1:
		return nil, fmt.Errorf("which listener? add one of listener=%s", strings.Join(names, ", listener="))
	}
	return ruled[0], nil
}

// fits refuses what no connection to the listener has.
func (q *Question) fits(l *config.ListenerSection) error {
	for _, key := range questionKeys() {
		means := key
		if key == "dest" {
			means = "port"
		}
		if err := l.CheckMatches(means); err != nil && q.has[key] {
			return fmt.Errorf("%s and listener %s: %w", key, l.Name, err)
		}
	}
	switch {
	case l.HasDestination() && !q.has["dest"]:
		return fmt.Errorf("clients of listener %s say where they want to go; add dest=HOST:PORT", l.Name)
	case l.OriginalDestination && !q.query.Addr.IsValid():
		return fmt.Errorf("a redirected connection goes to an address; write dest=IP:%d", q.query.Port)
	case q.has["addr"] && q.query.Host == "":
		return errors.New("addr gives the addresses of a name in dest, and there is none; remove it")
	}
	return nil
}

// Explanation is what `check --explain` prints.
type Explanation struct {
	Listener string          `json:"listener"`
	Question string          `json:"question"`
	Rules    []explainedRule `json:"rules"`
	// LookedUp is the name whose addresses a rule needed and that was looked up; with
	// addr nothing is.
	LookedUp    string         `json:"looked_up,omitempty"`
	LookupError string         `json:"lookup_error,omitempty"`
	Resolved    []netip.Addr   `json:"resolved,omitempty"`
	Verdict     policy.Verdict `json:"verdict"`
	// Reason is what the session would end with; empty if it would be connected.
	Reason outcome.Reason `json:"reason,omitempty"`
	Rule   string         `json:"rule,omitempty"`
	// Together are the rules that are judged together, "#1+#2"; empty: Rule alone decides.
	Together string `json:"judged_together,omitempty"`
	Why      string `json:"why,omitempty"`
	Upstream string `json:"upstream,omitempty"`
	Dynamic  bool   `json:"dynamic,omitempty"`
	// Addresses are those of a dynamic upstream, as far as they are known.
	Addresses []explainedAddress `json:"addresses,omitempty"`
}

type explainedRule struct {
	Rule    string `json:"rule"`
	Matches bool   `json:"matches"`
	Key     string `json:"key,omitempty"`
	Text    string `json:"text"`
}

// explainedAddress is an address that would be dialled, or why it would not.
type explainedAddress struct {
	Address netip.Addr `json:"address"`
	Special string     `json:"special,omitempty"`
	Loop    bool       `json:"loop,omitempty"` // one of our own sockets, whatever the rules say
}

// explainTimeout bounds the look-up of a name.
const explainTimeout = 10 * time.Second

// Answer decides as a session would, and tells why.
func (q *Question) Answer(ctx context.Context) (e Explanation, err error) {
	rules, err := q.of.PolicyRules()
	if err != nil {
		return e, err
	}
	e.Listener, e.Question = q.of.Name, q.text
	d, found := q.decide(ctx, rules)
	if e.LookedUp = found.name; found.err != nil {
		e.LookupError, e.Reason = found.err.Error(), outcome.DNS
	}
	for _, s := range rules.Explain(&q.query, found.addrs, found.known) {
		e.Rules = append(e.Rules, explainedRule{Rule: s.Rule, Matches: s.Matched, Key: s.Key, Text: s.Text})
	}
	if e.Resolved = found.addrs; e.Reason == "" {
		e.decided(d, q.file, q.query.Port)
	}
	return e, nil
}

// found is what is known of the addresses of a question's destination. Name is the one
// that was looked up; empty: none was. Err is that of the lookup.
type found struct {
	name  string
	addrs []netip.Addr
	known bool
	err   error
}

// decide asks the rules, and looks up the name if they need its addresses.
func (q *Question) decide(ctx context.Context, rules *policy.Rules) (policy.Decision, found) {
	f := found{addrs: q.addrs, known: q.has["addr"]}
	d, need := rules.Decide(&q.query, f.addrs, f.known)
	if !need {
		return d, f
	}
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	if f.name = q.query.Host; q.absolute {
		f.name += "."
	}
	if f.addrs, f.err = nameserver.LookUp(ctx, q.file.DNSServers(), f.name); f.err != nil {
		return d, f
	}
	for i := range f.addrs {
		f.addrs[i] = f.addrs[i].Unmap()
	}
	f.known = true
	d, _ = rules.Decide(&q.query, f.addrs, true)
	return d, f
}

// decided takes in what the rules of the file decided about a port.
func (e *Explanation) decided(d policy.Decision, f *config.File, port uint16) {
	e.Verdict, e.Rule, e.Why, e.Upstream = d.Verdict, d.Rule, d.Why, d.Upstream
	if all := d.Rules(); all != d.Rule {
		e.Together = all
	}
	switch d.Verdict {
	case policy.Deny:
		e.Reason = outcome.Denied
	case policy.NoRule:
		e.Reason = outcome.NoRoute
	}
	if u := f.Upstream(d.Upstream); u == nil || !u.Dynamic {
		return
	}
	e.Dynamic = true
	refused := outcome.Reason("")
	dialled := false
	for _, addr := range d.Addrs {
		special, ok := d.May(addr)
		loop := listensAt(f, netip.AddrPortFrom(addr, port))
		switch {
		case loop:
			refused = outcome.Loop
		case !ok && refused == "":
			refused = outcome.SpecialAddress
		}
		dialled = dialled || ok && !loop
		e.Addresses = append(e.Addresses, explainedAddress{addr, special, loop})
	}
	if !dialled {
		e.Reason = refused
	}
}

// listensAt says whether one of our sockets would be met at an address, as far as
// the file tells: ports that the system chooses, and what systemd passes, are known
// only at run time.
func listensAt(f *config.File, to netip.AddrPort) bool {
	all := []string{f.Admin.Listen, f.Metrics.Listen}
	for _, l := range f.Listeners {
		all = append(all, l.Listen...)
	}
	return slices.ContainsFunc(all, func(listen string) bool {
		return slices.ContainsFunc(config.ListenAddrs(listen), func(at netip.AddrPort) bool { return bind.Reaches(to, at) })
	})
}

// Write is the explanation for people.
func (e *Explanation) Write(w io.Writer, q *Question) error {
	p := &output.Report{}
	p.Linef("listener %s: %s", e.Listener, q.text)
	p.Linef("")
	rows := [][]string{{"RULE", "MATCHES", "WHY"}}
	for _, r := range e.Rules {
		matches := "no"
		if r.Matches {
			matches = "yes"
		}
		rows = append(rows, []string{r.Rule, matches, r.Text})
	}
	p.Table(rows)
	p.Linef("")
	p.Linef("%s", e.resolution(q))
	p.Linef("%s", e.verdict())
	for _, a := range e.Addresses {
		switch {
		case a.Loop:
			p.Linef("address %s: refused (%s), because we listen there ourselves", a.Address, outcome.Loop)
		case a.Special == "":
			p.Linef("address %s: dialled", a.Address)
		default:
			p.Linef("address %s: refused (%s: %s), because no rule opens it", a.Address, outcome.SpecialAddress, a.Special)
		}
	}
	if e.Dynamic && len(e.Addresses) == 0 {
		p.Linef("addresses: %s is looked up when it is dialled; special ones (loopback, private and the like) are refused unless the rule opens them: addr=IP asks about one", q.query.Host)
	}
	_, err := io.WriteString(w, p.String())
	return err
}

// resolution says what is known of the name's addresses, and from whom.
func (e *Explanation) resolution(q *Question) string {
	switch {
	case e.LookupError != "":
		return fmt.Sprintf("name: %s was looked up, because a rule depends on its addresses: %s", e.LookedUp, e.LookupError)
	case e.LookedUp != "":
		return fmt.Sprintf("name: %s was looked up, because a rule depends on its addresses: %s", e.LookedUp, addressList(e.Resolved))
	case q.has["addr"]:
		return fmt.Sprintf("name: %s has %s, as addr says; nobody was asked", q.query.Host, addressList(e.Resolved))
	}
	return "name: nothing was looked up"
}

func addressList(all []netip.Addr) string {
	var texts []string
	for _, addr := range all {
		texts = append(texts, addr.String())
	}
	return strings.Join(texts, ", ")
}

func (e *Explanation) verdict() string {
	rule := e.Rule
	if e.Together != "" {
		rule += " (judged together: " + e.Together + ")"
	}
	switch e.Verdict {
	case policy.Allow:
		return fmt.Sprintf("verdict: allow, by rule %s, to upstream %s", rule, e.Upstream)
	case policy.WouldDeny:
		return fmt.Sprintf("verdict: would_deny, by rule %s: allowed to upstream %s, and reported: %s", rule, e.Upstream, e.Why)
	case policy.Deny:
		return fmt.Sprintf("verdict: deny, by rule %s (reason %s): %s", e.Rule, e.Reason, e.Why)
	case policy.NoRule:
		return fmt.Sprintf("verdict: none, because no rule matches (reason %s)", e.Reason)
	}
	return fmt.Sprintf("verdict: unknown (reason %s)", e.Reason)
}
