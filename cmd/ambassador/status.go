package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"ambassador/certs"
	"ambassador/l4"
	"ambassador/policy"
)

// statusReply is the answer of /v1/status.
type statusReply struct {
	Version    string              `json:"version"`
	PID        int                 `json:"pid"`
	Started    time.Time           `json:"started"`
	Readiness  l4.Readiness        `json:"readiness"`
	Listeners  []listenerReply     `json:"listeners"`
	Upstreams  []l4.UpstreamStatus `json:"upstreams"`
	Identities []identityReply     `json:"identities"`
	UsersFiles []usersReply        `json:"users_files,omitempty"`
	Sandbox    *sandboxReply       `json:"sandbox,omitempty"`
	// Sessions are open; the bytes are those of ended ones too.
	Sessions  int   `json:"sessions"`
	BytesUp   int64 `json:"bytes_up"`
	BytesDown int64 `json:"bytes_down"`
}

// listenerReply is a listener as the API tells of it. Rules is how many it has.
type listenerReply struct {
	l4.ListenerStatus
	Rules int `json:"rules,omitempty"`
}

func (a *admin) listenerReplies() []listenerReply {
	out := []listenerReply{}
	for _, b := range a.listeners() {
		l := listenerReply{ListenerStatus: b}
		if a.rules != nil {
			l.Rules = a.rules(b.Name)
		}
		out = append(out, l)
	}
	return out
}

// identityReply is certs.Status as the API tells it.
type identityReply struct {
	Name       string     `json:"name"`
	Ready      bool       `json:"ready"`
	Subject    string     `json:"subject,omitempty"`
	Names      []string   `json:"names"`
	Serial     string     `json:"serial,omitempty"`
	Issuer     string     `json:"issuer,omitempty"`
	NotBefore  *time.Time `json:"not_before,omitempty"`
	NotAfter   *time.Time `json:"not_after,omitempty"`
	Generation uint64     `json:"generation"`
	// NextRenewal is when the issuer is asked next; not there if it comes by itself.
	NextRenewal *time.Time `json:"next_renewal,omitempty"`
	Loads       int64      `json:"loads"`
	Failures    int64      `json:"failures"`
	LastError   string     `json:"last_error,omitempty"`
	LastErrorAt *time.Time `json:"last_error_at,omitempty"`
}

func (a *admin) identityReplies() []identityReply {
	out := []identityReply{}
	if a.identities == nil {
		return out
	}
	for _, s := range a.identities() {
		out = append(out, newIdentityReply(s))
	}
	return out
}

func newIdentityReply(s certs.Status) identityReply {
	r := identityReply{Name: s.Name, Ready: s.Ready, Subject: s.Subject, Names: orEmpty(s.Names), Serial: s.Serial, Issuer: s.Issuer, Generation: s.Generation,
		NotBefore: unlessZero(s.NotBefore), NotAfter: unlessZero(s.NotAfter), NextRenewal: unlessZero(s.NextRenewal), LastErrorAt: unlessZero(s.LastErrorAt),
		Loads: int64(s.Loads), Failures: int64(s.Failures)}
	if r.LastError = s.LastError; r.LastError == "" {
		r.LastError = s.Reason
	}
	return r
}

func unlessZero(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// sessionsReply is the answer of /v1/sessions and /v1/sessions/recent.
type sessionsReply struct {
	Sessions []l4.Record `json:"sessions"`
}

// writeStatus is the status for people, as of now, whose zone times are in.
func writeStatus(w io.Writer, s statusReply, now time.Time) error {
	p := &report{now: now}
	p.linef("ambassador %s (pid %d), up %s since %s", s.Version, s.PID, age(now.Sub(s.Started)), p.when(s.Started))
	p.readiness(s.Readiness)
	p.listeners(s.Listeners)
	p.upstreams(s.Upstreams)
	p.identities(s.Identities)
	p.usersFiles(s.UsersFiles)
	p.linef("")
	if s.Sandbox != nil {
		p.linef("sandbox: %s", s.Sandbox.String())
	}
	p.linef("%s open, %s up and %s down since the start", plural(s.Sessions, "session"), byteCount(s.BytesUp), byteCount(s.BytesDown))
	_, err := io.WriteString(w, p.String())
	return err
}

// report collects lines and tables for people.
type report struct {
	strings.Builder
	now time.Time
}

// linef adds a line; what it is made of cannot add another.
func (p *report) linef(format string, args ...any) {
	p.WriteString(visible(fmt.Sprintf(format, args...)) + "\n")
}

// table prints rows in columns, the first of them the heads. Nothing from
// outside can break a row or speak to the terminal.
func (p *report) table(rows [][]string) {
	w := tabwriter.NewWriter(p, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				io.WriteString(w, "\t")
			}
			if cell = visible(cell); cell == "" {
				cell = "-"
			}
			io.WriteString(w, cell)
		}
		io.WriteString(w, "\n")
	}
	w.Flush()
}

func (p *report) readiness(r l4.Readiness) {
	switch {
	case r.Ready:
		p.linef("ready")
		return
	case r.Draining:
		p.linef("draining, not ready")
	default:
		p.linef("not ready:")
	}
	for _, line := range r.Waiting {
		if line == "draining" {
			continue // said above
		}
		p.linef("  %s", line)
	}
}

func (p *report) listeners(all []listenerReply) {
	p.linef("")
	if len(all) == 0 {
		p.linef("No listener accepts connections.")
		return
	}
	ruled := slices.ContainsFunc(all, func(l listenerReply) bool { return l.Rules > 0 })
	rows := [][]string{{"LISTENER", "ADDRESS", "TLS"}}
	if ruled {
		rows[0] = append(rows[0], "RULES")
	}
	for _, l := range all {
		row := []string{l.Name, l.Addr, listenerTLS(l.ListenerStatus)}
		switch {
		case ruled && l.Rules > 0:
			row = append(row, strconv.Itoa(l.Rules))
		case ruled:
			row = append(row, "")
		}
		rows = append(rows, row)
	}
	p.table(rows)
}

// listenerTLS is what a listener shows its clients and wants of them, in words.
func listenerTLS(l l4.ListenerStatus) string {
	switch {
	case l.TLS == nil:
		return ""
	case l.TLS.IdentityError != "":
		return string(l4.ReasonNoIdentity) + ": " + l.TLS.IdentityError
	}
	text := "as " + strings.Join(l.TLS.Identities, ", ") + "; client " + l.TLS.Client
	if len(l.TLS.Principals) > 0 {
		text += ": " + strings.Join(l.TLS.Principals, ", ")
	}
	if l.StartTLS != "" {
		text = "starttls " + l.StartTLS + " " + text
	}
	return text
}

func (p *report) upstreams(all []l4.UpstreamStatus) {
	rows := [][]string{{"UPSTREAM", "ENDPOINT", "SESSIONS", "STATE"}}
	addresses := [][]string{{"ADDRESS", "OF", "HEALTH", "BREAKER", "SESSIONS", "SPARES", "LAST ERROR"}}
	for _, u := range all {
		open := fmt.Sprint(u.Active)
		if u.Dynamic {
			rows = append(rows, []string{u.Name, "dynamic", open, p.dynamicState(u)})
			open = ""
		}
		for _, e := range u.Endpoints {
			rows = append(rows, []string{u.Name, e.Endpoint, open, p.endpointState(u, e)})
			open = "" // it is the upstream's
			for _, a := range e.Addresses {
				addresses = append(addresses, p.addressRow(u, a))
			}
		}
	}
	for _, t := range [][][]string{rows, addresses} {
		if len(t) > 1 {
			p.linef("")
			p.table(t)
		}
	}
}

func (p *report) addressRow(u l4.UpstreamStatus, a l4.AddressStatus) []string {
	health, breaker, last := string(a.Health), a.Breaker, ""
	if a.HealthSince != nil {
		health += " for " + age(p.now.Sub(*a.HealthSince))
	}
	if a.NextTrial != nil {
		breaker += ", next trial in " + age(a.NextTrial.Sub(p.now))
	}
	if a.LastErrorAt != nil {
		last = age(p.now.Sub(*a.LastErrorAt)) + " ago: " + a.LastError
	}
	return []string{a.Address, u.Name, health, breaker, fmt.Sprint(a.Sessions), fmt.Sprint(a.Spares), last}
}

// dynamicState is what is known of where a dynamic upstream has been, in words.
func (p *report) dynamicState(u l4.UpstreamStatus) string {
	if u.IdentityError != "" {
		return string(l4.ReasonNoIdentity) + ": " + u.IdentityError
	}
	text := plural(u.Destinations, "destination")
	if n := u.Destinations - u.Breakers[policy.Closed.String()]; n > 0 {
		text += ", " + plural(n, "breaker") + " not closed"
	}
	return text
}

// endpointState is how the last attempt at an endpoint went, in words.
func (p *report) endpointState(u l4.UpstreamStatus, e l4.EndpointStatus) string {
	switch {
	case u.IdentityError != "":
		return string(l4.ReasonNoIdentity) + ": " + u.IdentityError
	case e.LastReason == "":
		return "not tried yet"
	case e.LastReason == l4.ReasonOK:
		return "ok" + p.ago(e.LastSuccess)
	}
	return string(e.LastReason) + p.ago(e.LastFailure) + ": " + e.LastError
}

func (p *report) identities(all []identityReply) {
	rows := [][]string{{"IDENTITY", "NAMES", "EXPIRES", "RENEWAL", "STATE"}}
	for _, id := range all {
		expires, renewal := "", ""
		if id.NotAfter != nil {
			expires = p.when(*id.NotAfter) + " (" + p.in(*id.NotAfter) + ")"
		}
		if id.NextRenewal != nil {
			renewal = "in " + age(id.NextRenewal.Sub(p.now))
		}
		rows = append(rows, []string{id.Name, strings.Join(id.Names, " "), expires, renewal, identityState(id)})
	}
	if len(rows) > 1 {
		p.linef("")
		p.table(rows)
	}
}

func (p *report) usersFiles(all []usersReply) {
	rows := [][]string{{"USERS FILE", "USERS", "LOADED", "STATE"}}
	for _, u := range all {
		state := "ok"
		if u.LastError != "" {
			state = "the old users are in use; the file could not be read" + p.ago(u.LastErrorAt) + ": " + u.LastError
		}
		rows = append(rows, []string{u.File, strconv.Itoa(u.Users), p.when(u.Loaded), state})
	}
	if len(rows) > 1 {
		p.linef("")
		p.table(rows)
	}
}

func identityState(id identityReply) string {
	switch {
	case id.Ready && id.LastError != "":
		return "ok, but the last load failed: " + id.LastError
	case id.Ready:
		return "ok"
	case id.LastError != "":
		return "not ready: " + id.LastError
	}
	return "not ready"
}

// writeSessions lists sessions for people: live ones, or ended ones.
func writeSessions(w io.Writer, all []l4.Record, recent bool, now time.Time) error {
	p := &report{now: now}
	asked := slices.ContainsFunc(all, func(r l4.Record) bool { return r.Destination != "" })
	heads := []string{"ID", "START", "CLIENT", "LISTENER", "UPSTREAM", "ADDRESS", "STAGE", "UP", "DOWN", "DURATION"}
	if asked {
		heads = slices.Insert(heads, 4, "DESTINATION")
	}
	if recent {
		heads = append(heads, "REASON")
	}
	rows := [][]string{heads}
	for _, r := range all {
		row := []string{r.ID, p.when(r.Start), r.Client, r.Listener, r.Upstream, r.Address, string(r.Stage), byteCount(r.BytesUp), byteCount(r.BytesDown), r.Duration.String()}
		if asked {
			row = slices.Insert(row, 4, r.Destination)
		}
		if recent {
			row = append(row, string(r.Reason))
		}
		rows = append(rows, row)
	}
	switch {
	case len(all) > 0:
		p.table(rows)
	case recent:
		p.linef("No session has ended yet.")
	default:
		p.linef("No session is open. `ambassador sessions --recent` lists those that have ended.")
	}
	_, err := io.WriteString(w, p.String())
	return err
}

// when is a time to the second, in the zone of now.
func (p *report) when(t time.Time) string {
	return t.In(p.now.Location()).Format("2006-01-02 15:04:05 MST")
}

func (p *report) ago(t *time.Time) string {
	if t == nil {
		return ""
	}
	return " " + age(p.now.Sub(*t)) + " ago"
}

// in says how far off t is: "in 7d16h", "expired 2h ago".
func (p *report) in(t time.Time) string {
	if d := t.Sub(p.now); d > 0 {
		return "in " + age(d)
	}
	return "expired " + age(p.now.Sub(t)) + " ago"
}

// age is a duration for people: its two largest units.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(d, 0)/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
}

// byteCount is a size for people: "512 B", "1.5 KiB".
func byteCount(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n)/1024, "KMGTPE"
	for v >= 1023.95 { // which would be rounded to 1024.0
		v, units = v/1024, units[1:]
	}
	return fmt.Sprintf("%.1f %ciB", v, units[0])
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
