package cli

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

// page is a report of what a running ambassador says.
type page struct{ output.Report }

// writeStatus is the status for people, as of now, whose zone times are in.
func writeStatus(w io.Writer, s api.Status, now time.Time) error {
	p := &page{output.Report{Now: now}}
	p.Linef("ambassador %s (pid %d), up %s since %s", s.Version, s.PID, output.Age(now.Sub(s.Started)), p.When(s.Started))
	p.readiness(s.Readiness)
	p.listeners(s.Listeners)
	p.upstreams(s.Upstreams)
	p.identities(s.Identities)
	p.usersFiles(s.UsersFiles)
	p.Linef("")
	if s.Sandbox != nil {
		p.Linef("sandbox: %s", s.Sandbox.String())
	}
	p.Linef("%s open, %s up and %s down since the start", output.Plural(s.Sessions, "session"), output.Bytes(s.BytesUp), output.Bytes(s.BytesDown))
	_, err := io.WriteString(w, p.String())
	return err
}

func (p *page) readiness(r l4.Readiness) {
	switch {
	case r.Ready:
		p.Linef("ready")
		return
	case r.Draining:
		p.Linef("draining, not ready")
	default:
		p.Linef("not ready:")
	}
	for _, line := range r.Waiting {
		if line == "draining" {
			continue // said above
		}
		p.Linef("  %s", line)
	}
}

func (p *page) listeners(all []api.Listener) {
	p.Linef("")
	if len(all) == 0 {
		p.Linef("No listener accepts connections.")
		return
	}
	ruled := slices.ContainsFunc(all, func(l api.Listener) bool { return l.Rules > 0 })
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
	p.Table(rows)
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

func (p *page) upstreams(all []l4.UpstreamStatus) {
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
			p.Linef("")
			p.Table(t)
		}
	}
}

func (p *page) addressRow(u l4.UpstreamStatus, a l4.AddressStatus) []string {
	health, breaker, last := string(a.Health), a.Breaker, ""
	if a.HealthSince != nil {
		health += " for " + output.Age(p.Now.Sub(*a.HealthSince))
	}
	if a.NextTrial != nil {
		breaker += ", next trial in " + output.Age(a.NextTrial.Sub(p.Now))
	}
	if a.LastErrorAt != nil {
		last = output.Age(p.Now.Sub(*a.LastErrorAt)) + " ago: " + a.LastError
	}
	return []string{a.Address, u.Name, health, breaker, fmt.Sprint(a.Sessions), fmt.Sprint(a.Spares), last}
}

// dynamicState is what is known of where a dynamic upstream has been, in words.
func (p *page) dynamicState(u l4.UpstreamStatus) string {
	if u.IdentityError != "" {
		return string(outcome.NoIdentity) + ": " + u.IdentityError
	}
	text := output.Plural(u.Destinations, "destination")
	if n := u.Destinations - u.Breakers[policy.Closed.String()]; n > 0 {
		text += ", " + output.Plural(n, "breaker") + " not closed"
	}
	return text
}

// endpointState is how the last attempt at an endpoint went, in words.
func (p *page) endpointState(u l4.UpstreamStatus, e l4.EndpointStatus) string {
	switch {
	case u.IdentityError != "":
		return string(outcome.NoIdentity) + ": " + u.IdentityError
	case e.LastReason == "":
		return "not tried yet"
	case e.LastReason == outcome.OK:
		return "ok" + p.Ago(e.LastSuccess)
	}
	return string(e.LastReason) + p.Ago(e.LastFailure) + ": " + e.LastError
}

func (p *page) identities(all []api.Identity) {
	rows := [][]string{{"IDENTITY", "NAMES", "EXPIRES", "RENEWAL", "STATE"}}
	for _, id := range all {
		expires, renewal := "", ""
		if id.NotAfter != nil {
			expires = p.When(*id.NotAfter) + " (" + p.In(*id.NotAfter) + ")"
		}
		if id.NextRenewal != nil {
			renewal = "in " + output.Age(id.NextRenewal.Sub(p.Now))
		}
		rows = append(rows, []string{id.Name, strings.Join(id.Names, " "), expires, renewal, identityState(id)})
	}
	if len(rows) > 1 {
		p.Linef("")
		p.Table(rows)
	}
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

func identityState(id api.Identity) string {
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
func writeSessions(w io.Writer, all []outcome.Record, recent bool, now time.Time) error {
	p := &page{output.Report{Now: now}}
	asked := slices.ContainsFunc(all, func(r outcome.Record) bool { return r.Destination != "" })
	heads := []string{"ID", "START", "CLIENT", "LISTENER", "UPSTREAM", "ADDRESS", "STAGE", "UP", "DOWN", "DURATION"}
	if asked {
		heads = slices.Insert(heads, 4, "DESTINATION")
	}
	if recent {
		heads = append(heads, "REASON")
	}
	rows := [][]string{heads}
	for _, r := range all {
		row := []string{r.ID, p.When(r.Start), r.Client, r.Listener, r.Upstream, r.Address, string(r.Stage), output.Bytes(r.BytesUp), output.Bytes(r.BytesDown), r.Duration.String()}
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
		p.Table(rows)
	case recent:
		p.Linef("No session has ended yet.")
	default:
		p.Linef("No session is open. `ambassador sessions --recent` lists those that have ended.")
	}
	_, err := io.WriteString(w, p.String())
	return err
}
