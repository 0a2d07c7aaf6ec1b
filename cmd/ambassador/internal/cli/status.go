package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// page is a report of what a running ambassador says.
type page struct{ output.Report }

// newPage is an empty page for the commands' output, as of now.
func (a *commands) newPage() *page {
	return &page{output.Report{Now: time.Now(), Screen: screenOf(a.Stdout, a.Env)}}
}

// status writes the status for people.
func (p *page) status(s api.Status) {
	p.readiness(s)
	p.Linef("ambassador %s (pid %d), up %s since %s", s.Version, s.PID, output.Age(p.Now.Sub(s.Started)), p.When(s.Started))
	if s.Loaded != nil {
		p.Linef("configuration loaded %s ago, at %s%s", output.Age(p.Now.Sub(*s.Loaded)), p.When(*s.Loaded), byReload(s.LastReload))
	}
	if u := s.LastUpgrade; u != nil && u.Error != "" {
		p.Linef("warning: the upgrade at %s failed: %s", p.When(u.At), u.Error)
	} else if u != nil {
		p.Linef("%s, %s ago", upgradedText(u), output.Age(p.Now.Sub(u.At)))
	}
	for _, w := range s.Readiness.Warnings {
		p.Linef("warning: %s", w)
	}
	p.listeners(s.Listeners)
	p.upstreams(s.Upstreams)
	p.identities(s.Identities)
	p.usersFiles(s.UsersFiles)
	p.Linef("")
	if s.Sandbox != nil {
		p.Linef("sandbox: %s", s.Sandbox.String())
	}
	p.Linef("%s open, %s up and %s down since the start", output.Plural(s.Sessions, "session"), output.Bytes(s.BytesUp), output.Bytes(s.BytesDown))
}

// byReload says how the last reload went. The warnings have the error.
func byReload(r *api.Reload) string {
	switch {
	case r == nil:
		return ", at the start"
	case r.Error != "":
		return "; the last reload failed"
	}
	return ", by a reload"
}

// readiness is the first line: "ready", "ready, but orders_db: unreachable", "not ready:
// REASON". More than one reason follows, a line each.
func (p *page) readiness(s api.Status) {
	r, troubles := s.Readiness, []string{}
	for _, u := range s.Upstreams {
		if text := trouble(u); text != "" {
			troubles = append(troubles, u.Name+": "+text)
		}
	}
	waiting := slices.DeleteFunc(slices.Clone(r.Waiting), func(line string) bool { return line == "draining" })
	first := "ready"
	switch {
	case r.Ready && len(troubles) > 0:
		first = "ready, but " + strings.Join(troubles, "; ")
	case r.Ready:
	case r.Draining:
		first = "draining, not ready"
	default:
		first = "not ready"
	}
	if !r.Ready && len(waiting) > 0 {
		first += ":"
	}
	if !r.Ready && len(waiting) == 1 {
		first, waiting = first+" "+waiting[0], nil
	}
	p.WriteString(p.Paint(output.Visible(first)) + "\n")
	for _, line := range waiting {
		p.Linef("  %s", line)
	}
}

// trouble says in few words why sessions of an upstream fail now, or which part of it
// does; empty if none is known to.
func trouble(u upstream.Status) string {
	if u.IdentityError != "" {
		return string(outcome.NoIdentity)
	}
	good, bad := 0, 0
	for _, e := range u.Endpoints {
		if len(e.Addresses) == 0 && e.LastReason != "" && e.LastReason != outcome.OK {
			bad++ // its name does not resolve
		}
		for _, a := range e.Addresses {
			switch {
			case isDown(e, a):
				bad++
			default:
				good++
			}
		}
	}
	switch {
	case u.Dynamic || bad == 0: // one destination of many says little
		return ""
	case good == 0:
		return "unreachable"
	}
	return fmt.Sprintf("%d of %d addresses unreachable", bad, good+bad)
}

// isDown reports whether an address is known to fail.
func isDown(e upstream.EndpointStatus, a upstream.AddressStatus) bool {
	failed := e.LastReason != "" && e.LastReason != outcome.OK && e.LastAddress == a.Address
	return a.Health == policy.Unhealthy || a.Breaker != policy.Closed.String() || a.Health != policy.Healthy && failed
}

func (p *page) listeners(all []api.Listener) {
	p.Linef("")
	if len(all) == 0 {
		p.Linef("No listener accepts connections.")
		return
	}
	rows := [][]string{{"LISTENER", "ADDRESS", "UPSTREAM", "OPEN", "FAILED/MIN"}}
	for _, l := range all {
		to := l.Upstream
		if l.Rules > 0 {
			to = output.Plural(l.Rules, "rule")
		}
		rows = append(rows, []string{l.Name, l.Addr, to, strconv.Itoa(l.Sessions), strconv.Itoa(l.Failures)})
	}
	p.Table(rows)
	for _, l := range all {
		if text := listenerTLS(l.ListenerStatus); text != "" {
			p.Linef("%s: TLS %s", l.Name, text)
		}
	}
}

// listenerTLS is what a listener shows its clients and wants of them, in words.
func listenerTLS(l l4.ListenerStatus) string {
	switch {
	case l.TLS == nil:
		return ""
	case l.TLS.IdentityError != "":
		return string(outcome.NoIdentity) + ": " + l.TLS.IdentityError
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

// upstreams has a row for each address, with one state. Errors follow the table, each
// once.
func (p *page) upstreams(all []upstream.Status) {
	rows := [][]string{{"UPSTREAM", "ENDPOINT", "ADDRESS", "STATE", "OPEN", "PRECONN"}}
	var errors []string
	for _, u := range all {
		if u.IdentityError != "" {
			errors = append(errors, u.Name+": "+u.IdentityError)
		}
		if u.Dynamic {
			rows = append(rows, []string{u.Name, "dynamic", "", p.dynamicState(u), strconv.Itoa(u.Active), ""})
		}
		for _, e := range u.Endpoints {
			rows = append(rows, p.endpointRows(u, e)...)
			errors = append(errors, p.errorsOf(u, e)...)
		}
	}
	if len(rows) == 1 {
		return
	}
	p.Linef("")
	p.Table(rows)
	for _, line := range errors {
		p.Linef("%s", line)
	}
}

// endpointRows are the rows of an endpoint's addresses; without one, that of its name.
func (p *page) endpointRows(u upstream.Status, e upstream.EndpointStatus) (rows [][]string) {
	if len(e.Addresses) == 0 {
		return [][]string{{u.Name, e.Endpoint, "", p.endpointState(u, e), "", ""}}
	}
	for _, a := range e.Addresses {
		rows = append(rows, []string{u.Name, e.Endpoint, a.Address, p.addressState(u, e, a), strconv.Itoa(a.Sessions), strconv.Itoa(a.Preconnected)})
	}
	return rows
}

// addressState is one state of an address, of its identity, breaker and health.
func (p *page) addressState(u upstream.Status, e upstream.EndpointStatus, a upstream.AddressStatus) string {
	switch {
	case u.IdentityError != "":
		return string(outcome.NoIdentity)
	case a.Breaker == policy.Open.String() && a.NextTrial != nil:
		return "breaker open, next attempt in " + output.Age(a.NextTrial.Sub(p.Now))
	case a.Breaker != policy.Closed.String():
		return "breaker " + strings.ReplaceAll(a.Breaker, "_", " ")
	case a.Health == policy.Healthy || a.Health == policy.Unhealthy:
		text := string(a.Health)
		if a.HealthSince != nil {
			text += " for " + output.Age(p.Now.Sub(*a.HealthSince))
		}
		return text
	case e.LastAddress != "" && e.LastAddress != a.Address:
		return "not tried yet"
	}
	return p.endpointState(u, e)
}

// endpointState is how the last attempt at an endpoint went, without the error.
func (p *page) endpointState(u upstream.Status, e upstream.EndpointStatus) string {
	switch {
	case u.IdentityError != "":
		return string(outcome.NoIdentity)
	case e.LastReason == "":
		return "not tried yet"
	case e.LastReason == outcome.OK:
		return "ok" + p.Ago(e.LastSuccess)
	}
	return string(e.LastReason) + p.Ago(e.LastFailure)
}

// errorsOf are the errors of an endpoint, each text once: of the addresses that fail, and
// of the lookup.
func (p *page) errorsOf(u upstream.Status, e upstream.EndpointStatus) (lines []string) {
	if u.IdentityError != "" {
		return nil // which is why nothing is tried
	}
	seen := map[string]bool{}
	add := func(where, text string, at *time.Time) {
		if text != "" && !seen[text] {
			seen[text] = true
			lines = append(lines, where+p.Ago(at)+": "+text)
		}
	}
	for _, a := range e.Addresses {
		if isDown(e, a) {
			add(a.Address, a.LastError, a.LastErrorAt)
		}
	}
	if e.LastReason != outcome.OK && len(lines) == 0 {
		add(e.Endpoint, e.LastError, e.LastFailure)
	}
	said := slices.ContainsFunc(lines, func(line string) bool { return strings.HasSuffix(line, ": "+e.LookupError) })
	switch {
	case e.LookupError == "" || seen[e.LookupError]:
	case e.GoneSince != nil && len(e.Addresses) == 0:
		add(e.Endpoint+": the name has not existed for "+output.Age(p.Now.Sub(*e.GoneSince))+", and its addresses were dropped", e.LookupError, nil)
	case e.GoneSince != nil:
		add(e.Endpoint+": the name has not existed for "+output.Age(p.Now.Sub(*e.GoneSince))+", and its addresses will be dropped", e.LookupError, nil)
	case said:
	case strings.HasPrefix(e.Endpoint, "kubernetes:"):
		add(e.Endpoint+": discovery has no new answer", e.LookupError, nil)
	default:
		add(e.Endpoint+": the name does not resolve, and its addresses stay", e.LookupError, nil)
	}
	return lines
}

// dynamicState is what is known of where a dynamic upstream has been, in words.
func (p *page) dynamicState(u upstream.Status) string {
	if u.IdentityError != "" {
		return string(outcome.NoIdentity)
	}
	text := output.Plural(u.Destinations, "destination")
	if n := u.Destinations - u.Breakers[policy.Closed.String()]; n > 0 {
		text += ", " + output.Plural(n, "breaker") + " not closed"
	}
	return text
}

// identities has a row for each, with its subject: its names, or without any the
// certificate's subject. What is wrong with them follows.
func (p *page) identities(all []api.Identity) {
	rows := [][]string{{"IDENTITY", "SUBJECT", "EXPIRES", "LEFT", "RENEWAL", "STATE"}}
	var lines []string
	for _, id := range all {
		expires, left, renewal := "", "", ""
		if id.NotAfter != nil {
			expires, left = id.NotAfter.In(p.Now.Location()).Format("2006-01-02 15:04"), "expired"
			if d := id.NotAfter.Sub(p.Now); d > 0 {
				left = output.Age(d)
			}
		}
		if id.NextRenewal != nil {
			renewal = "in " + output.Age(id.NextRenewal.Sub(p.Now))
		}
		subject := strings.Join(id.Names, " ")
		if subject == "" {
			subject = id.Subject
		}
		state, why := identityState(id)
		rows = append(rows, []string{id.Name, subject, expires, left, renewal, state})
		for _, text := range why {
			lines = append(lines, id.Name+": "+text)
		}
	}
	if len(rows) == 1 {
		return
	}
	p.Linef("")
	p.Table(rows)
	for _, line := range lines {
		p.Linef("%s", line)
	}
}

// identityState is the state in few words, and what is wrong.
func identityState(id api.Identity) (state string, why []string) {
	if id.LastError != "" {
		why = []string{id.LastError}
	}
	switch {
	case id.Ready && id.LastError != "":
		state = "ok, but the last load failed"
	case id.Ready && len(id.Warnings) > 0:
		state = "warning"
	case id.Ready:
		state = "ok"
	default:
		state = "not ready"
	}
	return state, append(why, id.Warnings...)
}

func (p *page) usersFiles(all []api.UsersFile) {
	rows := [][]string{{"USERS FILE", "USERS", "LOADED", "STATE"}}
	for _, u := range all {
		state := "ok"
		if u.LastError != "" {
			state = "the old users are in use; the file could not be read" + p.Ago(u.LastErrorAt) + ": " + u.LastError
		}
		rows = append(rows, []string{u.File, strconv.Itoa(u.Users), p.When(u.Loaded), state})
	}
	if len(rows) > 1 {
		p.Linef("")
		p.Table(rows)
	}
}
