package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"ambassador/policy"
)

// RuleSection is one of a listener's rules: what must be so for it to match, and
// what is then done.
type RuleSection struct {
	Name                                                      string
	Hosts, Ports, IPs, Clients, Users, UIDs, Principals, SNIs []string
	Upstream, Deny, Report                                    string
}

// ruleKeys are the keys by which a rule matches.
func ruleKeys() []string {
	return []string{"host", "port", "ip", "client", "user", "uid", "principal", "sni"}
}

// rulesField is a listener's rules: a list of sections.
func (l *ListenerSection) rulesField() field {
	schema := func() map[string]any {
		return map[string]any{"type": "array", "items": sectionSchema((&RuleSection{}).fields()), "minItems": 1}
	}
	return field{key: "rules", doc: "Who may go where: the first rule that matches decides. All keys of a rule must match, and one of a key's values; a rule without such keys matches everything. If none matches, the session is refused (no_route).",
		schema: schema, decode: l.decodeRules}
}

func (r *RuleSection) fields() []field {
	text := map[string]any{"type": "string"}
	number := map[string]any{"type": []string{"integer", "string"}}
	return []field{
		textField("name", "What the log, metrics and records call it: at most 63 of a-z, 0-9, - and _. Default: #N, its place.", &r.Name, checkRuleName),
		severalField("host", "The name that is asked for: a whole one, or *.SUFFIX for one or more labels before it. Never an IP address.", text, &r.Hosts, checkHost),
		severalField("port", "The port that is asked for: 443, or a range: 8000-8999.", number, &r.Ports, checkPorts),
		severalField("ip", "The address that is asked for or that the name has: CIDR ranges, or addresses. Only those inside are dialled.", text, &r.IPs, checkRange),
		severalField("client", "The client's IP address: CIDR ranges, or addresses.", text, &r.Clients, checkRange),
		severalField("user", "The user who logged in (users_file).", text, &r.Users, checkUser),
		severalField("uid", "The numeric user id of the client's process: on unix sockets, and by TCP from this host (Linux).", number, &r.UIDs, CheckUID),
		severalField("principal", "What the client's certificate proves, as records have it (tls.client: required), in the grammar of tls.principals.", text, &r.Principals, checkPrincipal),
		severalField("sni", "The name in the client's ClientHello (sni: true), as host.", text, &r.SNIs, checkHost),
		textField("upstream", "Allow: where its sessions go, one of upstreams.", &r.Upstream, nil),
		textField("deny", "Or refuse, and say why.", &r.Deny, nil),
		textField("report", "With upstream: allow, but count and record as would_deny, and say why.", &r.Report, nil),
	}
}

func (l *ListenerSection) decodeRules(d *decoder, n *yaml.Node, path string) {
	if n.Kind != yaml.SequenceNode {
		d.fail(n, path, "%s where a list is needed; write each rule behind a dash, as a section of its own", describe(n))
		return
	}
	if len(n.Content) == 0 {
		d.fail(n, path, "empty, so that every session would be refused; give at least one rule")
	}
	for i, item := range n.Content {
		r := RuleSection{}
		d.section(item, fmt.Sprintf("%s[%d]", path, i), r.fields())
		l.Rules = append(l.Rules, r)
	}
}

// The checks of single values.

func checkRuleName(s string) error {
	switch {
	case strings.HasPrefix(s, "#"):
		return fmt.Errorf("%q: so the rules without a name are called, by their place; choose another", s)
	case !namePattern.MatchString(s):
		return fmt.Errorf("%q is no name; use at most 63 of a-z, 0-9, - and _", s)
	}
	return nil
}

// checkHost says what is wrong with a host of a rule, or an sni.
func checkHost(s string) error {
	if host, port, err := net.SplitHostPort(s); err == nil {
		key := "host"
		if _, err := netip.ParseAddr(host); err == nil {
			key = "ip"
		}
		return fmt.Errorf("%q has a port; write %s: %q and port: %s", s, key, host, port)
	}
	_, err := policy.ParseHostPattern(s)
	return err
}

func checkPorts(s string) error {
	_, err := policy.ParsePortRange(s)
	return err
}

func checkRange(s string) error {
	_, err := ParsePrefix(s)
	return err
}

func checkUser(s string) error {
	if s == "" || strings.Contains(s, ":") {
		return fmt.Errorf("%q is no user; write the name as users_file has it, before the colon", s)
	}
	return nil
}

// CheckUID says what is wrong with a numeric user id.
func CheckUID(s string) error {
	if _, err := strconv.ParseUint(s, 10, 32); err != nil {
		return fmt.Errorf("%q is no user id; write the number that `id -u USER` prints", s)
	}
	return nil
}

// validateRules finds what no key by itself shows.
func (l *ListenerSection) validateRules(d *decoder, path string, f *File) {
	names := map[string]int{}
	for i, r := range l.Rules {
		at := fmt.Sprintf("%s.rules[%d]", path, i)
		if first, taken := names[r.Name]; taken && r.Name != "" {
			d.failAt(at+".name", "rule #%d has this name already; choose another", first+1)
		} else {
			names[r.Name] = i
		}
		r.validateVerdict(d, at)
		l.validateUpstream(d, at+".upstream", r.Upstream, f)
		for _, key := range ruleKeys() {
			if d.at[at+"."+key] == nil {
				continue
			}
			if err := l.CheckMatches(key); err != nil {
				d.failAt(at+"."+key, "%v", err)
			}
		}
	}
}

// validateVerdict wants exactly one thing to be done.
func (r *RuleSection) validateVerdict(d *decoder, at string) {
	has := func(key string) bool { return d.at[at+"."+key] != nil }
	switch {
	case has("upstream") && has("deny"):
		d.failAt(at+".deny", "a rule allows or refuses; remove deny, or upstream")
	case !has("upstream") && !has("deny"):
		d.failAt(at, "it does nothing; give upstream: NAME to allow, or deny: WHY to refuse")
	case has("deny") && has("report"):
		d.failAt(at+".report", "report allows what would be refused; give upstream instead of deny, or remove report")
	}
	for _, key := range []string{"deny", "report"} {
		if n := d.at[at+"."+key]; n != nil && n.Value == "" {
			d.failAt(at+"."+key, "empty; say why, because people are told: %s: \"not on the list\"", key)
		}
	}
}

// CheckMatches says why no session of the listener could match a key.
func (l *ListenerSection) CheckMatches(key string) error {
	switch key {
	case "host", "port", "ip":
		if !l.HasDestination() {
			return errors.New("clients of this listener do not say where they want to go; give it socks5, http_connect or original_destination, or remove " + key)
		}
		if key == "host" && l.OriginalDestination {
			return errors.New("a redirected connection goes to an address, and has no name; use ip, or sni with sni: true")
		}
	case "client":
		if l.onlyUnix() {
			return errors.New("the clients of a unix socket have no addresses; use uid, or remove client")
		}
	case "user":
		if l.UsersFile() == "" {
			return errors.New("nobody is asked who he is here; give users_file in the listener's socks5 or http_connect, or remove user")
		}
	case "uid":
		switch {
		case !l.onUnix() && !l.fromSystemd() && runtime.GOOS != "linux":
			return errors.New("only Linux knows the uid of clients by TCP; listen on unix:/path, or remove uid")
		case len(l.ProxyFrom) > 0 && !l.ProxyOptional && !l.onUnix():
			return errors.New("clients come through a proxy here, and have no uid on this host; remove uid, or proxy_protocol")
		}
	case "principal":
		if l.TLS == nil || l.TLS.Client == clientNone {
			return errors.New("clients prove nothing here; give the listener tls with client: required, or remove principal")
		}
	case "sni":
		if !l.SNI {
			return errors.New("no ClientHello is read here; give the listener sni: true, or remove sni")
		}
	}
	return nil
}

// everything says whether the rule matches whatever comes.
func (r *RuleSection) everything() bool {
	return len(r.Hosts)+len(r.Ports)+len(r.IPs)+len(r.Clients)+len(r.Users)+len(r.UIDs)+len(r.Principals)+len(r.SNIs) == 0
}

// label is what the rule at a place is called.
func (r *RuleSection) label(i int) string {
	if r.Name != "" {
		return r.Name
	}
	return "#" + strconv.Itoa(i+1)
}

// ruleLabel is a rule as metrics and records call it.
type ruleLabel struct {
	Listener, Rule string
	Verdict        policy.Verdict
}

// RuleLabels are those of all rules of the file, and of each listener's sessions
// that no rule matches.
func (f *File) RuleLabels() (out []ruleLabel) {
	for _, l := range f.Listeners {
		for i, r := range l.Rules {
			out = append(out, ruleLabel{l.Name, r.label(i), r.verdict()})
		}
		if len(l.Rules) > 0 {
			out = append(out, ruleLabel{l.Name, "", policy.NoRule})
		}
	}
	return out
}

// verdict is what the rule says of what it matches.
func (r *RuleSection) verdict() policy.Verdict {
	switch {
	case r.Deny != "":
		return policy.Deny
	case r.Report != "":
		return policy.WouldDeny
	}
	return policy.Allow
}

// unreachableRules tells of rules behind one that matches everything.
func (l *ListenerSection) unreachableRules() []string {
	i := slices.IndexFunc(l.Rules, func(r RuleSection) bool { return r.everything() })
	if i < 0 || i == len(l.Rules)-1 {
		return nil
	}
	return []string{fmt.Sprintf("listeners.%s.rules[%d]: it can never match, nor those after it, because rule %s before it matches everything", l.Name, i+1, l.Rules[i].label(i))}
}

// opensMetadata is the range of the rule that names nothing but addresses of a
// cloud's metadata service; empty if there is none.
func (r *RuleSection) opensMetadata() string {
	if r.Deny != "" {
		return ""
	}
	for _, s := range r.IPs {
		p, err := ParsePrefix(s)
		if err == nil && p.IsSingleIP() && policy.Special(p.Addr()) == policy.RangeMetadata {
			return s
		}
	}
	return ""
}

// PolicyRules translates the listener's rules for policy; nil if it has none.
func (l *ListenerSection) PolicyRules() (*policy.Rules, error) {
	if len(l.Rules) == 0 {
		return nil, nil
	}
	var all []policy.Rule
	for _, r := range l.Rules {
		rule, err := r.rule()
		if err != nil {
			return nil, err
		}
		all = append(all, rule)
	}
	return policy.NewRules(all), nil
}

// rule translates the section, whose values were checked when the file was read.
func (r *RuleSection) rule() (out policy.Rule, err error) {
	out = policy.Rule{Name: r.Name, Users: r.Users, Upstream: r.Upstream, Deny: r.Deny, Report: r.Report}
	var errs [7]error
	out.Hosts, errs[0] = parseAll(r.Hosts, policy.ParseHostPattern)
	out.Ports, errs[1] = parseAll(r.Ports, policy.ParsePortRange)
	out.IPs, errs[2] = parseAll(r.IPs, ParsePrefix)
	out.Clients, errs[3] = parseAll(r.Clients, ParsePrefix)
	out.SNIs, errs[4] = parseAll(r.SNIs, policy.ParseHostPattern)
	out.UIDs, errs[5] = parseAll(r.UIDs, func(s string) (uint32, error) {
		n, err := strconv.ParseUint(s, 10, 32)
		return uint32(n), err
	})
	out.Principals, errs[6] = parseAll(r.Principals, func(s string) (func(string) bool, error) {
		p, err := parsePrincipal(s)
		return p.MatchProved, err
	})
	return out, errors.Join(errs[:]...)
}

// parseAll reads every text; the error is the first.
func parseAll[T any](all []string, parse func(string) (T, error)) (out []T, err error) {
	for _, s := range all {
		v, err := parse(s)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}
