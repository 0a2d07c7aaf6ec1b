package main

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/secrets"
	"ambassador/l4/starttls"
)

// forwardFlags are the flags of `forward`: one listener, one upstream, and an
// identity, all named forward.
type forwardFlags struct {
	listenFlags
	to            []string
	starttls      string
	cert, key, ca string
	serverName    string
	principals    []string
	plain         bool
}

func (ff *forwardFlags) bind(flags *pflag.FlagSet) {
	ff.listenFlags.bind(flags)
	flags.StringArrayVar(&ff.to, "to", nil, "the service: HOST:PORT or unix:/path (required; more than one take turns)")
	flags.StringVar(&ff.starttls, "starttls", "", "the protocol whose dialogue comes before TLS: "+strings.Join(starttls.Names(), ", "))
	flags.StringVar(&ff.cert, "cert", "", "our certificate chain, in PEM")
	flags.StringVar(&ff.key, "key", "", "its private key, in PEM")
	flags.StringVar(&ff.ca, "ca", "", "the roots that verify the service, in PEM, or system (default system)")
	flags.StringVar(&ff.serverName, "server-name", "", "the name that the service's certificate must be for (default: the host of --to)")
	flags.StringArrayVar(&ff.principals, "principal", nil, "what the service must prove instead: dns:NAME, ip:ADDRESS, spiffe://domain/path, spki:sha256/BASE64 or any")
	flags.BoolVar(&ff.plain, "plain", false, "no TLS to the service")
}

// forwardFile makes the configuration that the flags mean: as YAML, which is
// what --print-config shows, and which is read like any file. The error is a
// *config.Error whose problems name flags.
func forwardFile(ff *forwardFlags) (*config.File, error) {
	f, err := config.FromFlags("forward", ff.yaml(), ff.contradictions(), ff.flagOf)
	return f, secrets.WithFileProblems(f, err)
}

// contradictions are mistakes that the YAML would not show.
func (ff *forwardFlags) contradictions() (out []config.Problem) {
	fail := func(flag, text string) { out = append(out, config.Problem{File: flag, Text: text}) }
	if ff.listen == "" {
		fail("--listen", "required: where the application connects, like --listen 127.0.0.1:5433")
	}
	if len(ff.to) == 0 {
		fail("--to", "required: the service, like --to db.internal:5432")
	}
	if ff.cert != "" && ff.key == "" {
		fail("--cert", "needs --key, the file with its private key")
	}
	if ff.key != "" && ff.cert == "" {
		fail("--key", "needs --cert, the file with its certificate")
	}
	for flag, given := range map[string]bool{"--cert": ff.cert != "", "--key": ff.key != "", "--ca": ff.ca != "", "--server-name": ff.serverName != "",
		"--principal": len(ff.principals) > 0, "--starttls": ff.starttls != "" && ff.starttls != "none"} {
		if ff.plain && given {
			fail(flag, "has no meaning with --plain; remove one of them")
		}
	}
	return out
}

// flagOf is the flag that a key of the made configuration comes from.
func (ff *forwardFlags) flagOf(path string) string {
	if flag := ff.listenFlags.flagOf(path); flag != "" {
		return flag
	}
	for _, m := range []struct{ part, flag string }{
		{".endpoints", "--to"}, {".starttls", "--starttls"}, {"tls.server_name", "--server-name"}, {"tls.principals", "--principal"},
		{"tls.ca", "--ca"}, {"files.cert", "--cert"}, {"files.key", "--key"}, {"files.ca", "--ca"}, {"identities.", "--cert"},
	} {
		if strings.Contains(path, m.part) {
			return m.flag
		}
	}
	return "forward"
}

// yaml is the configuration as text. Paths are absolute in it, so that it can be
// put anywhere.
func (ff *forwardFlags) yaml() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if ff.cert != "" || ff.key != "" {
		line("identities:\n  forward:\n    files: {cert: %s, key: %s}", config.Quote(absolute(ff.cert)), config.Quote(absolute(ff.key)))
	}
	line("upstreams:\n  forward:")
	if len(ff.to) > 0 {
		line("    endpoints: [%s]", quoteAll(absoluteSockets(ff.to)))
	}
	if ff.starttls != "" {
		line("    starttls: %s", config.Quote(ff.starttls))
	}
	if !ff.plain {
		line("    tls: {%s}", strings.Join(ff.tlsKeys(), ", "))
	}
	line("listeners:\n  forward:\n    upstream: forward")
	for _, key := range ff.lines() {
		line("    %s", key)
	}
	return b.String()
}

func (ff *forwardFlags) tlsKeys() (keys []string) {
	if ff.cert != "" || ff.key != "" {
		keys = append(keys, "identity: forward")
	}
	if ff.ca != "" {
		ca := ff.ca
		if ca != "system" {
			ca = absolute(ca)
		}
		keys = append(keys, "ca: "+config.Quote(ca))
	}
	if ff.serverName != "" {
		keys = append(keys, "server_name: "+config.Quote(ff.serverName))
	}
	if len(ff.principals) > 0 {
		keys = append(keys, "principals: ["+quoteAll(ff.principals)+"]")
	}
	return keys
}
