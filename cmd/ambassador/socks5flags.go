package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/secrets"
	"ambassador/policy"
)

// socks5Flags are the flags of `socks5`: a listener named socks5, and an upstream named
// direct that dials what clients ask for.
type socks5Flags struct {
	listenFlags
	allow  []string
	users  string
	report bool
}

// unlisted is the rule with which --report allows all other destinations.
const unlisted = "unlisted"

func (sf *socks5Flags) bind(flags *pflag.FlagSet) {
	sf.listenFlags.bind(flags)
	flags.StringArrayVar(&sf.allow, "allow", nil, "what clients may connect to: HOST:PORT, *.SUFFIX:PORT, CIDR:PORT or [IPv6]/LENGTH:PORT; PORT is N, N-M or * (may be repeated)")
	flags.StringVar(&sf.users, "users", "", "file of the users who may ask, a line of htpasswd -nbB each (default: nobody is asked who he is)")
	flags.BoolVar(&sf.report, "report", false, "allow everything else but special addresses, too, and print at the end which --allow it would need")
}

// socks5File makes the configuration that the flags describe, as forwardFile does.
func socks5File(sf *socks5Flags) (*config.File, error) {
	text, problems := sf.yaml()
	if len(sf.listen) == 0 {
		problems = append(problems, config.Problem{File: "--listen", Text: "required: where clients connect, like --listen 127.0.0.1:1080"})
	}
	if len(sf.allow) == 0 && !sf.report {
		problems = append(problems, config.Problem{File: "--allow", Text: "required: what clients may connect to, like --allow 'db.internal:5432' or --allow '*.example.com:443'; --report finds out what they need"})
	}
	f, err := config.FromFlags("socks5", text, problems, sf.flagOf)
	return f, secrets.WithFileProblems(f, err)
}

// flagOf is the flag that sets a key of the made configuration.
func (sf *socks5Flags) flagOf(path string) string {
	if flag := sf.listenFlags.flagOf(path); flag != "" {
		return flag
	}
	switch {
	case strings.Contains(path, ".rules"):
		return "--allow"
	case strings.Contains(path, ".socks5.users_file"):
		return "--users"
	}
	return "socks5"
}

// yaml returns the configuration as text. problems are the invalid values of --allow.
func (sf *socks5Flags) yaml() (text string, problems []config.Problem) {
	lines := []string{"upstreams:", "  direct: {dynamic: true}", "listeners:", "  socks5:"}
	for _, key := range sf.lines() {
		lines = append(lines, "    "+key)
	}
	lines = append(lines, "    socks5: {"+sf.usersKey()+"}", "    rules:")
	for _, value := range sf.allow {
		rule, err := parseAllow(value)
		if err != nil {
			problems = append(problems, config.Problem{File: "--allow", Text: err.Error()})
			continue
		}
		lines = append(lines, "      - "+rule.yaml())
	}
	if sf.report {
		lines = append(lines, "      - {name: "+unlisted+", upstream: direct, report: \"not in --allow\"}")
	} else {
		lines = append(lines, "      - {deny: \"not in --allow\"}")
	}
	return strings.Join(lines, "\n") + "\n", problems
}

func (sf *socks5Flags) usersKey() string {
	if sf.users == "" {
		return ""
	}
	return "users_file: " + config.Quote(absolute(sf.users))
}

// allowRule is one --allow: a destination and its ports.
type allowRule struct {
	key, value string // host or ip, and its value
	ports      string // "443", "8000-8999", or "*"
}

// yaml is the rule in YAML flow style.
func (r allowRule) yaml() string {
	text := r.key + ": " + config.Quote(r.value)
	if r.ports != "*" {
		text += ", port: " + r.ports
	}
	return "{" + text + ", upstream: direct}"
}

// parseAllow parses a value of --allow. The error names the value and the fix.
func parseAllow(s string) (allowRule, error) {
	target, ports, err := splitAllow(s)
	r := allowRule{key: "host", value: target, ports: ports}
	if err == nil && ports != "*" {
		err = checkPorts(target, ports)
	}
	if err != nil {
		return r, fmt.Errorf("%q: %w", s, err)
	}
	if target == "*" {
		return r, fmt.Errorf("%q: * stands for what comes before a suffix, as in *.example.com; for every destination write 0.0.0.0/0:%s and [::]/0:%s", s, ports, ports)
	}
	if prefix, isAddress, err := parseAllowRange(target); isAddress {
		if err != nil {
			return r, fmt.Errorf("%q: %w", s, err)
		}
		r.key, r.value = "ip", prefix.String()
		if prefix.IsSingleIP() {
			r.value = prefix.Addr().String()
		}
		return r, nil
	}
	if r.value, err = policy.ParseHostPattern(target); err != nil {
		return r, fmt.Errorf("%q: %w", s, err)
	}
	return r, nil
}

// checkPorts checks the ports of a value of --allow.
func checkPorts(target, ports string) error {
	if n, ok := config.NamedPort(ports); ok {
		return fmt.Errorf("the port must be a number; %s is %d: write %s:%d", ports, n, target, n)
	}
	_, err := policy.ParsePortRange(ports)
	return err
}

// splitAllow separates the destination from the ports.
func splitAllow(s string) (target, ports string, err error) {
	if strings.Contains(s, "://") {
		return "", "", errors.New("a URL; write HOST:PORT, like example.com:443")
	}
	if all := strings.Split(s, ","); len(all) > 1 {
		return "", "", fmt.Errorf("more than one destination; repeat the flag: --allow %s", strings.Join(all, " --allow "))
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return "", "", errors.New("no port; write HOST:PORT, or HOST:* for every port")
	}
	target, ports = s[:i], s[i+1:]
	switch {
	case target == "":
		return "", "", errors.New("no host; write HOST:PORT")
	case strings.Contains(target, ":") && !strings.HasPrefix(target, "["):
		return "", "", errors.New("an IPv6 address stands in brackets; write [2001:db8::]/32:443")
	}
	return target, ports, nil
}

// parseAllowRange parses an address or a CIDR range; IPv6 is in brackets. isAddress is
// false if the text is a name instead.
func parseAllowRange(s string) (p netip.Prefix, isAddress bool, err error) {
	text := s
	if rest, ok := strings.CutPrefix(s, "["); ok {
		addr, length, closed := strings.Cut(rest, "]")
		if !closed {
			return p, true, errors.New("no ] behind the IPv6 address; write [2001:db8::]/32:443")
		}
		text = addr + length
	}
	if _, err := netip.ParseAddr(text); err != nil && !strings.Contains(text, "/") && text == s {
		return p, false, nil
	}
	p, err = config.ParsePrefix(text)
	return p, true, err
}
