package main

import (
	"fmt"
	"strings"
	"time"

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
	pkcs12        string
	passwordFile  string
	serverName    string
	principals    []string
	alpn          []string
	minVersion    string
	plain         bool
	noHealth      bool

	connectTimeout, attemptTimeout time.Duration
}

func (ff *forwardFlags) bind(flags *pflag.FlagSet) {
	ff.listenFlags.bind(flags)
	flags.StringArrayVar(&ff.to, "to", nil, "the service: HOST:PORT or unix:/path (required; more than one take turns)")
	flags.StringVar(&ff.starttls, "starttls", "", "the protocol whose dialogue comes before TLS: "+strings.Join(starttls.Names(), ", "))
	flags.StringVar(&ff.cert, "cert", "", "our certificate chain, in PEM or DER")
	flags.StringVar(&ff.key, "key", "", "its private key, in PEM or DER")
	flags.StringVar(&ff.pkcs12, "pkcs12", "", "our certificate chain and its key in one file, instead of --cert and --key")
	flags.StringVar(&ff.passwordFile, "password-file", "", "file with the password of --key, --pkcs12, or a --ca in PKCS #12")
	flags.StringVar(&ff.ca, "ca", "", "the roots that verify the service, in PEM, DER or PKCS #12, or system (default: those in --pkcs12, else system)")
	flags.StringVar(&ff.serverName, "server-name", "", "the name that the service's certificate must be for (default: the host of --to)")
	flags.StringArrayVar(&ff.principals, "principal", nil, "what the service must prove instead: dns:NAME, ip:ADDRESS, spiffe://domain/path, spki:sha256/BASE64 or any")
	flags.StringSliceVar(&ff.alpn, "alpn", nil, "the protocols to offer by ALPN, like h2,http/1.1")
	flags.StringVar(&ff.minVersion, "min-version", "", "the lowest version of TLS: 1.2 or 1.3 (default 1.2)")
	flags.DurationVar(&ff.connectTimeout, "connect-timeout", 0, "how long all attempts of one session to connect may take together (default 10s)")
	flags.DurationVar(&ff.attemptTimeout, "attempt-timeout", 0, "how long one attempt may take, through STARTTLS and TLS (default 3s while there is another --to to try)")
	flags.BoolVar(&ff.plain, "plain", false, "no TLS to the service")
	flags.BoolVar(&ff.noHealth, "no-health", false, "never connect to the service but for a session; be ready at once (default: probe it after sessions failed, if there is another address, and when readiness is asked for)")
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
	if len(ff.listen) == 0 {
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
	if ff.passwordFile != "" && ff.key == "" && ff.pkcs12 == "" && !ff.hasRootsFile() {
		fail("--password-file", "there is nothing that it could open; give --key, --pkcs12 or --ca FILE, or remove it")
	}
	for flag, given := range map[string]bool{"--cert": ff.cert != "", "--key": ff.key != "", "--pkcs12": ff.pkcs12 != "", "--password-file": ff.passwordFile != "",
		"--ca": ff.ca != "", "--server-name": ff.serverName != "", "--principal": len(ff.principals) > 0, "--alpn": len(ff.alpn) > 0,
		"--min-version": ff.minVersion != "", "--starttls": ff.starttls != "" && ff.starttls != "none"} {
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
		{".endpoints", "--to"}, {".connect.timeout", "--connect-timeout"}, {".connect.attempt_timeout", "--attempt-timeout"}, {".starttls", "--starttls"}, {"tls.server_name", "--server-name"}, {"tls.principals", "--principal"},
		{"tls.alpn", "--alpn"}, {"tls.min_version", "--min-version"},
		{"tls.ca", "--ca"}, {"files.cert", "--cert"}, {"files.key", "--key"}, {"files.pkcs12", "--pkcs12"}, {"files.password_file", "--password-file"},
		{"files.ca", "--ca"}, {"identities.", "--cert"},
	} {
		if strings.Contains(path, m.part) {
			return m.flag
		}
	}
	if path == "upstreams.forward" { // the upstream as a whole is what --to gives
		return "--to"
	}
	return "forward"
}

// yaml is the configuration as text. Paths are absolute in it, so that it can be
// put anywhere.
func (ff *forwardFlags) yaml() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if files := ff.fileKeys(); files != nil {
		line("identities:\n  forward:\n    files: {%s}", strings.Join(files, ", "))
	}
	line("upstreams:\n  forward:")
	if len(ff.to) > 0 {
		line("    endpoints: [%s]", quoteAll(absoluteSockets(ff.to)))
	}
	if ff.starttls != "" {
		line("    starttls: %s", config.Quote(ff.starttls))
	}
	for _, key := range ff.healthKeys() {
		line("    %s", key)
	}
	if keys := ff.connectKeys(); len(keys) > 0 {
		line("    connect: {%s}", strings.Join(keys, ", "))
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

// hasRootsFile reports whether --ca names a file.
func (ff *forwardFlags) hasRootsFile() bool { return ff.ca != "" && ff.ca != "system" }

// rootsInFiles reports whether --ca is a key of the identity. It is one of the
// upstream if possible, which needs no identity; but only an identity has a password.
func (ff *forwardFlags) rootsInFiles() bool { return ff.hasRootsFile() && ff.passwordFile != "" }

// fileKeys are the keys of the identity's files; nil if there is no identity.
func (ff *forwardFlags) fileKeys() (keys []string) {
	for _, f := range []struct{ key, path string }{{"cert", ff.cert}, {"key", ff.key}, {"pkcs12", ff.pkcs12}, {"password_file", ff.passwordFile}} {
		if f.path != "" {
			keys = append(keys, f.key+": "+config.Quote(absolute(f.path)))
		}
	}
	if ff.rootsInFiles() {
		keys = append(keys, "ca: "+config.Quote(absolute(ff.ca)))
	}
	return keys
}

// healthKeys returns the keys for probes and breaker. No probe comes before the first
// session: the service may be an `nc -l`, which takes one connection. Without probes
// only sessions find a sole service that works again, so its breaker is open for a
// second at a time.
func (ff *forwardFlags) healthKeys() (keys []string) {
	if ff.noHealth {
		keys = append(keys, "health: {interval: 0s}", "required: false")
	} else {
		keys = append(keys, "health: {probe: on_failure}")
	}
	if len(ff.to) == 1 {
		keys = append(keys, "breaker: {open: 1s, max_open: 1s}")
	}
	return keys
}

func (ff *forwardFlags) connectKeys() (keys []string) {
	if ff.connectTimeout != 0 {
		keys = append(keys, "timeout: "+ff.connectTimeout.String())
	}
	if ff.attemptTimeout != 0 {
		keys = append(keys, "attempt_timeout: "+ff.attemptTimeout.String())
	}
	return keys
}

func (ff *forwardFlags) tlsKeys() (keys []string) {
	if ff.fileKeys() != nil {
		keys = append(keys, "identity: forward")
	}
	if ff.ca != "" && !ff.rootsInFiles() {
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
	if len(ff.alpn) > 0 {
		keys = append(keys, "alpn: ["+quoteAll(ff.alpn)+"]")
	}
	if ff.minVersion != "" {
		keys = append(keys, "min_version: "+config.Quote(ff.minVersion))
	}
	return keys
}
