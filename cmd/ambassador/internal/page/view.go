package page

import (
	"cmp"
	"fmt"
	"html/template"
	"math"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
)

const (
	maxRows     = 50   // sessions of each table
	maxKept     = 4096 // ended sessions that the server keeps
	maxAsked    = 512  // ended sessions that the answers look at
	maxLogLines = 100  // lines of the log
	maxQuery    = 200  // bytes of a filter; the rest is ignored
)

// snapshot is what all viewers share. It is immutable.
type snapshot struct {
	made         time.Time
	status       api.Status
	open, ended  []outcome.Record // the newest ones, the newest first
	kept         int              // number of ended sessions that are kept
	addresses    []addressRow
	identities   []identityRow
	rules        []Rule
	log          []string
	plot         Plot
	newest       time.Time // of the history's samples
	counts, past Counts    // now, and at the begin of the history
	since        time.Time // the begin of the history
	// all is every session, the newest first, for a filter. It copies them once.
	all  func() (open, ended []outcome.Record)
	view *view // without sessions
	// parts renders those that are the same for every viewer with that access, once.
	parts map[Access]func() (map[string]string, error)
}

// snapshot returns the last one, or makes another if it is too old.
func (p *Page) snapshot(now time.Time) *snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last != nil && now.Sub(p.last.made) < freshFor {
		return p.last
	}
	src := &p.source
	s := &snapshot{made: now, status: src.Status(), open: src.Sessions(maxRows), ended: src.Recent(maxAsked), rules: src.Rules(), log: src.Log(), counts: src.Counts()}
	slices.Reverse(s.open)
	s.kept = max(len(s.ended), int(min(s.counts.Ended, maxKept)))
	s.all = sync.OnceValues(func() (open, ended []outcome.Record) {
		open = src.Sessions(math.MaxInt)
		slices.Reverse(open)
		return open, src.Recent(math.MaxInt)
	})
	s.addresses, s.identities = addressesOf(s), identitiesOf(s)
	samples := p.history.samples()
	s.plot, s.past, s.since = plotOf(samples), s.counts, now
	if len(samples) > 0 {
		s.newest, s.past, s.since = samples[len(samples)-1].at, samples[0].counts, samples[0].at
	}
	s.view = p.sharedView(s)
	s.parts = map[Access]func() (map[string]string, error){}
	for _, access := range []Access{Open, Token, Read} {
		v := *s.view
		v.Access = access
		s.parts[access] = sync.OnceValues(func() (map[string]string, error) { return v.render(sharedParts) })
	}
	p.last = s
	return s
}

// view is one document.
type view struct {
	parts      func() (map[string]string, error) // the shared ones
	Now        time.Time
	Status     api.Status
	Access     Access
	Query      string
	Answers    []answer
	Listeners  []listenerRow
	Addresses  []addressRow
	Identities []identityRow
	Rules      []Rule
	Open       []sessionRow
	Ended      []sessionRow
	OpenCount  int // that match
	EndedCount int
	Log        []logRow
	Traffic    string // of the last 15 minutes, in words
	Plot       Plot
	Newest     time.Time
}

// sharedView is a view without the sessions, which depend on the viewer.
func (p *Page) sharedView(s *snapshot) *view {
	v := &view{Now: s.made, Status: s.status, Rules: s.rules, Addresses: s.addresses, Identities: s.identities, Plot: s.plot, Newest: s.newest,
		Log: logRowsOf(s.log[max(0, len(s.log)-maxLogLines):])}
	v.Answers = p.answers(s)
	v.Listeners = listenersOf(s)
	v.Traffic = fmt.Sprintf("%s up and %s down, %s ended, %d failed in the last %s", output.Bytes(s.counts.Up-s.past.Up), output.Bytes(s.counts.Down-s.past.Down),
		output.Plural(int(s.counts.Ended-s.past.Ended), "session"), s.counts.Failed-s.past.Failed, output.Age(s.made.Sub(s.since)))
	return v
}

func (p *Page) view(now time.Time, query string, access Access) *view {
	s := p.snapshot(now)
	v := *s.view
	v.parts = s.parts[access]
	v.Access, v.Query = access, strings.TrimSpace(query[:min(len(query), maxQuery)])
	if v.Query == "" {
		v.Open, v.OpenCount = p.rows(s.open, s.made), max(s.status.Sessions, len(s.open))
		v.Ended, v.EndedCount = p.rows(s.ended, s.made), s.kept
		return &v
	}
	open, ended := s.all()
	v.Open, v.OpenCount = p.matching(open, v.Query, s.made)
	v.Ended, v.EndedCount = p.matching(ended, v.Query, s.made)
	return &v
}

// render renders parts by their names.
func (v *view) render(names []string) (map[string]string, error) {
	out := map[string]string{}
	for _, name := range names {
		var b strings.Builder
		if err := templates.ExecuteTemplate(&b, name, v); err != nil {
			return nil, err
		}
		out[name] = b.String()
	}
	return out, nil
}

// sessionRow is a session in a table.
type sessionRow struct {
	outcome.Record
	State string // bad where the session has failed
	Began string
	Why   string // what to do about it
	To    string
	Who   string
	Bytes string
	Time  string
}

// rows returns the first sessions.
func (p *Page) rows(all []outcome.Record, now time.Time) (rows []sessionRow) {
	for i := range all[:min(len(all), maxRows)] {
		rows = append(rows, p.row(&all[i], now))
	}
	return rows
}

// matching returns the first rows that contain the query, and how many there are.
func (p *Page) matching(all []outcome.Record, query string, now time.Time) (rows []sessionRow, n int) {
	query = strings.ToLower(query)
	for i := range all {
		if !contains(&all[i], query) {
			continue
		}
		if n++; n <= maxRows {
			rows = append(rows, p.row(&all[i], now))
		}
	}
	return rows, n
}

func contains(r *outcome.Record, query string) bool {
	for _, text := range []string{r.ID, r.Client, r.User, r.Principal, r.Listener, r.Upstream, r.Address, r.Destination, r.Endpoint, r.Rule, r.SNI, r.Tag, string(r.Reason), string(r.Stage), r.Cause} {
		if text != "" && strings.Contains(strings.ToLower(text), query) {
			return true
		}
	}
	return false
}

func (p *Page) row(r *outcome.Record, now time.Time) sessionRow {
	s := sessionRow{Record: *r, Began: output.Age(now.Sub(r.Start)), Why: r.Hint, Time: r.Duration.String(), State: "ok"}
	s.Bytes = output.Bytes(r.BytesUp) + " / " + output.Bytes(r.BytesDown)
	s.Who = joined(r.User, r.Principal, r.ClientProcess(), r.Tag)
	s.To = cmp.Or(r.Destination, r.Upstream)
	if r.Address != "" && r.Address != s.To {
		s.To = joined(s.To, "→ "+r.Address)
	}
	if r.Reason == "" {
		s.Time = output.Age(time.Duration(r.Duration)) // it changes while the session is open
		return s
	}
	if s.Why == "" {
		s.Why = outcome.Advice(r.Reason)
	}
	if p.source.Failed(r) {
		s.State = "bad"
	}
	return s
}

func joined(texts ...string) string {
	return strings.Join(slices.DeleteFunc(texts, func(s string) bool { return s == "" }), " ")
}

// listenerRow is a listener, and what its sessions do.
type listenerRow struct {
	api.Listener
	Upstreams    string
	State, Error string
}

func listenersOf(s *snapshot) (rows []listenerRow) {
	for _, l := range s.status.Listeners {
		row := listenerRow{Listener: l, State: "ok", Upstreams: strings.Join(s.counts.Upstreams[l.Name], ", ")}
		if l.TLS != nil && l.TLS.IdentityError != "" {
			row.State, row.Error = "bad", l.TLS.IdentityError
		}
		rows = append(rows, row)
	}
	return rows
}

// addressRow is an address of an upstream, or an endpoint that has none.
type addressRow struct {
	Upstream, Endpoint, Address string
	Dynamic                     bool // a row for all destinations: Endpoint is words
	TLS                         string
	State                       string // ok, warn or bad
	Health, Breaker             string
	Sessions                    string
	Preconnected                string
	Connect                     string // the median time of its sessions to connect
	Error                       string
	// Try is the path that makes a trial at once; empty if the address needs none.
	Try string
}

func addressesOf(s *snapshot) (rows []addressRow) {
	times := connectTimes(s)
	for _, u := range s.status.Upstreams {
		base := addressRow{Upstream: u.Name, TLS: tlsOf(u), State: "ok"}
		if u.IdentityError != "" {
			base.State, base.Error = "bad", "no usable identity: "+u.IdentityError
		}
		if u.Dynamic {
			row := base
			row.Dynamic, row.Endpoint = true, fmt.Sprintf("where clients ask; %s remembered", output.Plural(u.Destinations, "destination"))
			row.Sessions, row.Connect = fmt.Sprint(u.Active), medianOf(times[place{u.Name, ""}])
			rows = append(rows, row)
		}
		for _, e := range u.Endpoints {
			for _, row := range endpointRows(base, e, s.made) {
				row.Connect = medianOf(times[place{u.Name, row.Address}])
				if row.State != "ok" && base.State == "ok" && row.Health != "" && (!u.Dynamic || isResolved(row.Address)) {
					row.Try = tryPath(u.Name, row.Address)
				}
				rows = append(rows, row)
			}
		}
	}
	return rows
}

// isResolved reports whether an address of a dynamic upstream is one, and not the name of
// a destination that was not looked up since it was recalled.
func isResolved(address string) bool {
	_, err := netip.ParseAddrPort(address)
	return err == nil
}

func tlsOf(u upstream.Status) string {
	switch {
	case u.StartTLS != "":
		return "starttls " + u.StartTLS
	case u.TLS:
		return "TLS"
	}
	return "plain"
}

func endpointRows(base addressRow, e upstream.EndpointStatus, now time.Time) (rows []addressRow) {
	base.Endpoint = e.Endpoint
	if len(e.Addresses) == 0 {
		base.Address, base.Error = "no address", cmp.Or(base.Error, e.LookupError, e.LastError)
		base.State = cmp.Or(map[bool]string{true: "bad"}[base.Error != ""], "warn")
		return []addressRow{base}
	}
	for _, a := range e.Addresses {
		row := base
		row.Address, row.Health, row.Breaker = a.Address, string(a.Health), a.Breaker
		row.Sessions, row.Preconnected = fmt.Sprint(a.Sessions), fmt.Sprint(a.Preconnected)
		if a.HealthSince != nil {
			row.Health += " for " + output.Age(now.Sub(*a.HealthSince))
		}
		if a.NextTrial != nil {
			row.Breaker += ", next attempt in " + output.Age(a.NextTrial.Sub(now))
		}
		if a.LastErrorAt != nil && row.Error == "" {
			row.Error = output.Age(now.Sub(*a.LastErrorAt)) + " ago: " + a.LastError
		}
		switch {
		case base.State == "bad" || a.Health == "unhealthy" || a.Breaker == "open":
			row.State = "bad"
		case a.Breaker != "closed" || e.LastReason != "" && e.LastReason != outcome.OK:
			row.State = "warn"
		}
		rows = append(rows, row)
	}
	return rows
}

// tryPath is the path of the admin API, from the page, that makes a trial of an address.
func tryPath(upstream, address string) string {
	return strings.Replace(strings.TrimPrefix(api.PathTry, "/"), "{name}", url.PathEscape(upstream), 1) + "?address=" + url.QueryEscape(address)
}

// identityRow is an identity, and how much of its validity is left.
type identityRow struct {
	api.Identity
	State   string
	Left    int // percent of the validity
	Expires string
	Renewal string
	Problem string
}

func identitiesOf(s *snapshot) (rows []identityRow) {
	for _, id := range s.status.Identities {
		row := identityRow{Identity: id, State: "ok", Problem: cmp.Or(id.LastError, strings.Join(id.Warnings, "; "))}
		if len(id.Names) == 0 && id.Subject != "" {
			row.Names = []string{id.Subject}
		}
		if id.NotAfter != nil && id.NotBefore != nil {
			left, whole := id.NotAfter.Sub(s.made), id.NotAfter.Sub(*id.NotBefore)
			row.Left = int(min(max(100*left.Seconds()/max(whole.Seconds(), 1), 0), 100))
			row.Expires = (&output.Report{Now: s.made}).In(*id.NotAfter)
		}
		if id.NextRenewal != nil {
			row.Renewal = "in " + output.Age(id.NextRenewal.Sub(s.made))
		}
		switch {
		case !id.Ready:
			row.State = "bad"
		case row.Problem != "" || row.Left < 20:
			row.State = "warn"
		}
		rows = append(rows, row)
	}
	return rows
}

// The parts are the templates that a stream sends, by the ids of the elements that hold
// them.
var (
	sharedParts = []string{"answers", "listeners", "upstreams", "identities", "rules", "traffic", "log"}
	ownParts    = []string{"open", "ended"}
)

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"date":  func(t time.Time) string { return t.Format("2006-01-02 15:04:05") },
	"bytes": output.Bytes,
	"join":  func(s []string) string { return strings.Join(s, ", ") },
	"utc":   func(t *time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") },
	"clock": func(t time.Time) string { return t.Format("15:04:05") },
}).ParseFS(files, "assets/page.html"))
