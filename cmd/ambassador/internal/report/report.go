package report

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ambassador/l4/outcome"
	"ambassador/policy"
)

const (
	// maxDestinations bounds the destinations that are kept.
	maxDestinations = 10000
	// maxUsers bounds the users that are named for a destination.
	maxUsers = 5
)

// Tally counts sessions with the verdict would_deny. Make one with New. It is safe for
// concurrent use.
type Tally struct {
	since time.Time // static after construction

	mu       sync.Mutex
	asked    map[key]*Entry // guarded by mu
	allowed  int            // guarded by mu; sessions that another rule allowed
	overflow int            // guarded by mu; sessions to destinations beyond maxDestinations

	reports int             // guarded by mu; that are being made
	ended   map[string]bool // guarded by mu; ids of sessions that were added meanwhile
}

// key is what sessions are grouped by.
type key struct {
	listener, rule, host string
	port                 uint16
}

// Report is what the rules with `report` would deny.
type Report struct {
	Since time.Time `json:"since"`
	// Allowed is the number of sessions that other rules have allowed.
	Allowed int     `json:"allowed"`
	Entries []Entry `json:"entries"`
	// Overflow is the number of sessions to destinations that were not kept.
	Overflow int `json:"overflow,omitempty"`
}

// Entry is a host and a range of consecutive ports that clients asked for.
type Entry struct {
	Listener string `json:"listener"`
	Rule     string `json:"rule"`
	Reason   string `json:"reason"` // the rule's text of report
	Upstream string `json:"upstream,omitempty"`
	Host     string `json:"host"` // a name or an address
	First    uint16 `json:"first_port"`
	Last     uint16 `json:"last_port"`
	// Special is the class of a special address that the host is or has: "private". It is
	// "special" if only the refusal is known.
	Special  string                 `json:"special,omitempty"`
	Sessions int                    `json:"sessions"`
	Failed   map[outcome.Reason]int `json:"failed,omitempty"` // that were not connected
	Users    []string               `json:"users,omitempty"`  // the first five
	Latest   time.Time              `json:"latest"`           // the start of the last session
}

// New returns a tally that begins now.
func New(now time.Time) *Tally { return &Tally{since: now, asked: map[key]*Entry{}} }

// Add counts an ended session.
func (t *Tally) Add(r *outcome.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reports > 0 {
		t.ended[r.ID] = true
	}
	t.add(r)
}

func (t *Tally) add(r *outcome.Record) {
	switch policy.Verdict(r.Verdict) {
	case policy.Allow:
		t.allowed++
		return
	case policy.WouldDeny:
	default:
		return
	}
	host, text, err := net.SplitHostPort(r.Destination)
	port, portErr := strconv.ParseUint(text, 10, 16)
	if err != nil || portErr != nil {
		return // the client asked for no destination: no rule can name one
	}
	k := key{strings.Clone(r.Listener), r.Rule, strings.Clone(host), uint16(port)}
	e := t.asked[k]
	if e == nil {
		if len(t.asked) >= maxDestinations {
			t.overflow++
			return
		}
		e = &Entry{Listener: k.listener, Rule: k.rule, Reason: r.VerdictReason, Host: k.host, First: k.port, Last: k.port, Special: specialHost(host), Failed: map[outcome.Reason]int{}}
		t.asked[k] = e
	}
	e.count(r)
}

// count adds a session.
func (e *Entry) count(r *outcome.Record) {
	e.Sessions++
	if r.Establish == 0 && r.Reason != "" && r.Reason != outcome.Probe && r.Reason != outcome.Closed {
		e.Failed[r.Reason]++
	}
	if r.User != "" {
		e.addUser(strings.Clone(r.User))
	}
	if r.Start.After(e.Latest) {
		e.Latest = r.Start
	}
	e.Upstream = cmp.Or(r.Upstream, e.Upstream)
	if at, err := netip.ParseAddrPort(r.Address); err == nil && e.Special == "" {
		e.Special = string(policy.Special(at.Addr()))
	}
	if r.Reason == outcome.SpecialAddress && e.Special == "" {
		e.Special = "special"
	}
}

func (e *Entry) addUser(user string) {
	if len(e.Users) < maxUsers && !slices.Contains(e.Users, user) {
		e.Users = append(e.Users, user)
		slices.Sort(e.Users)
	}
}

// specialHost is the class of special addresses that a host is in by its text alone.
func specialHost(host string) string {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return string(policy.RangeLoopback)
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return string(policy.Special(addr))
	}
	return ""
}

// Report returns the entries, with the sessions that live lists as open, sorted by
// listener, rule, host and port. Live may be nil: none is open.
func (t *Tally) Report(live func() []outcome.Record) Report {
	all := t.with(live)
	out := Report{Since: all.since, Allowed: all.allowed, Overflow: all.overflow, Entries: []Entry{}}
	order := slices.SortedFunc(maps.Keys(all.asked), func(a, b key) int {
		return cmp.Or(strings.Compare(a.listener, b.listener), strings.Compare(a.rule, b.rule), strings.Compare(a.host, b.host), cmp.Compare(a.port, b.port))
	})
	for _, k := range order {
		e := all.asked[k]
		if n := len(out.Entries) - 1; n >= 0 && out.Entries[n].continues(e) {
			out.Entries[n].merge(e)
			continue
		}
		out.Entries = append(out.Entries, *e)
	}
	return out
}

// with returns a copy that also has the sessions of live. One that ends after live has
// listed it is in the tally already, and counts once.
func (t *Tally) with(live func() []outcome.Record) *Tally {
	defer t.begin()()
	var open []outcome.Record
	if live != nil {
		open = live()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.copied()
	for i := range open {
		if !t.ended[open[i].ID] {
			all.add(&open[i])
		}
	}
	return all
}

// begin remembers the sessions that are added until end is called.
func (t *Tally) begin() (end func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reports++; t.reports == 1 {
		t.ended = map[string]bool{}
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.reports--; t.reports == 0 {
			t.ended = nil
		}
	}
}

// copied returns a tally that the caller may change. Mu is held.
func (t *Tally) copied() *Tally {
	c := &Tally{since: t.since, asked: make(map[key]*Entry, len(t.asked)), allowed: t.allowed, overflow: t.overflow}
	for k, e := range t.asked {
		own := *e
		own.Failed, own.Users = maps.Clone(e.Failed), slices.Clone(e.Users)
		c.asked[k] = &own
	}
	return c
}

// continues reports whether next is the same but for its port, which is the next one.
func (e *Entry) continues(next *Entry) bool {
	return e.Listener == next.Listener && e.Rule == next.Rule && e.Host == next.Host && e.Last+1 == next.First && next.First != 0 &&
		e.Upstream == next.Upstream && e.Special == next.Special
}

func (e *Entry) merge(next *Entry) {
	e.Last, e.Sessions = next.Last, e.Sessions+next.Sessions
	for reason, n := range next.Failed {
		e.Failed[reason] += n
	}
	for _, user := range next.Users {
		e.addUser(user)
	}
	if next.Latest.After(e.Latest) {
		e.Latest = next.Latest
	}
}
