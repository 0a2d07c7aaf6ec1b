package report

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"ambassador/cmd/ambassador/internal/output"
	"ambassador/policy"
)

// Summary describes the sessions: "12 sessions, 3 refused, user batch".
func (e *Entry) Summary() string {
	text := output.Plural(e.Sessions, "session")
	for _, reason := range slices.Sorted(maps.Keys(e.Failed)) {
		text += fmt.Sprintf(", %d %s", e.Failed[reason], reason)
	}
	switch len(e.Users) {
	case 0:
	case 1:
		text += ", user " + e.Users[0]
	default:
		text += ", users " + strings.Join(e.Users, " ")
	}
	return text
}

// ports is the value of the key port.
func (e *Entry) ports() string { return policy.PortRange{First: e.First, Last: e.Last}.String() }

// Allow is the entry as a value of --allow.
func (e *Entry) Allow() string {
	host := e.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + e.ports()
}

// YAML is the entry as a rule in YAML, which allows it; empty if no rule can name the
// host.
func (e *Entry) YAML() string {
	_, addr, err := policy.ParseHost(e.Host)
	if err != nil {
		return ""
	}
	name := "host"
	if addr.IsValid() {
		name = "ip"
	}
	upstream := e.Upstream
	if upstream == "" {
		upstream = "UPSTREAM" // no session got as far
	}
	return fmt.Sprintf("{%s: %s, port: %s, upstream: %s}", name, strconv.Quote(e.Host), e.ports(), upstream)
}

// WriteFlags adds a line with --allow for each entry. Special addresses are comments: to
// open them is a decision.
func (r *Report) WriteFlags(p *output.Report) {
	for i := range r.Entries {
		e := &r.Entries[i]
		p.Linef("%s--allow '%s'  # %s", e.comment(), e.Allow(), e.note())
	}
}

// WriteRules adds the rules that allow what the rules with `report` would deny, under a
// comment for each of these.
func (r *Report) WriteRules(p *output.Report) {
	for i := range r.Entries {
		e := &r.Entries[i]
		if i == 0 || r.Entries[i-1].Listener != e.Listener || r.Entries[i-1].Rule != e.Rule {
			p.Linef("# listener %s: rule %s would deny this: %s", e.Listener, e.Rule, e.Reason)
		}
		if rule := e.YAML(); rule != "" {
			p.Linef("%s- %s  # %s", e.comment(), rule, e.note())
		}
	}
}

// comment begins the line of a special address, and that of a host which no rule and no
// flag can have.
func (e *Entry) comment() string {
	if e.Special != "" || e.YAML() == "" {
		return "# "
	}
	return ""
}

// note is the summary, after the class of a special address.
func (e *Entry) note() string {
	switch e.Special {
	case "":
		return e.Summary()
	case "special":
		return "special address; " + e.Summary()
	}
	return strings.ReplaceAll(e.Special, "_", " ") + " address; " + e.Summary()
}

// WriteOverflow adds a line if destinations were not kept.
func (r *Report) WriteOverflow(p *output.Report) {
	if r.Overflow > 0 {
		p.Linef("# and %s to more than %d destinations, which were not kept", output.Plural(r.Overflow, "session"), maxDestinations)
	}
}
