package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"ambassador/l4/starttls"
)

// forwardFlags are the flags of `forward`: one listener, one upstream, and an
// identity, all named forward.
type forwardFlags struct {
	listen                string
	to                    []string
	starttls              string
	cert, key, ca         string
	serverName            string
	principals            []string
	plain                 bool
	idle                  time.Duration
	socketMode            string
	unsafePlaintextListen bool
}

func (ff *forwardFlags) bind(flags *pflag.FlagSet) {
	flags.StringVar(&ff.listen, "listen", "", "where the application connects: HOST:PORT or unix:/path (required)")
	flags.StringArrayVar(&ff.to, "to", nil, "the service: HOST:PORT or unix:/path (required; more than one take turns)")
	flags.StringVar(&ff.starttls, "starttls", "", "the protocol whose dialogue comes before TLS: "+strings.Join(starttls.Names(), ", "))
	flags.StringVar(&ff.cert, "cert", "", "our certificate chain, in PEM")
	flags.StringVar(&ff.key, "key", "", "its private key, in PEM")
	flags.StringVar(&ff.ca, "ca", "", "the roots that verify the service, in PEM, or system (default system)")
	flags.StringVar(&ff.serverName, "server-name", "", "the name that the service's certificate must be for (default: the host of --to)")
	flags.StringArrayVar(&ff.principals, "principal", nil, "what the service must prove instead: dns:NAME, ip:ADDRESS, spiffe://domain/path, spki:sha256/BASE64 or any")
	flags.BoolVar(&ff.plain, "plain", false, "no TLS to the service")
	flags.DurationVar(&ff.idle, "idle", 0, "end sessions that move no byte for so long (default: never)")
	flags.StringVar(&ff.socketMode, "socket-mode", "", "permissions of the socket of --listen unix:/path (default 0600)")
	flags.BoolVar(&ff.unsafePlaintextListen, "unsafe-plaintext-listen", false, "allow --listen on an address that others can reach")
}

// forwardFile makes the configuration that the flags mean: as YAML, which is
// what --print-config shows, and which is read like any file. The error is a
// *ConfigError whose problems name flags.
func forwardFile(ff *forwardFlags) (*File, error) {
	problems := ff.contradictions()
	f, err := parseFile("forward", "/", []byte(ff.yaml()), func(string) (string, bool) { return "", false })
	var config *ConfigError
	switch {
	case errors.As(err, &config):
		for _, p := range config.Problems {
			if flag := flagOf(p.Path); !mentions(problems, flag) {
				problems = append(problems, Problem{File: flag, Text: withFlags(p.Text)})
			}
		}
	case err != nil:
		return nil, err
	}
	f.nameFlags()
	if len(problems) > 0 {
		return nil, &ConfigError{append(problems, f.fileProblems()...)}
	}
	return f, nil
}

// nameFlags lets later problems name flags instead of places in a file.
func (f *File) nameFlags() { f.places.flags = true }

// contradictions are mistakes that the YAML would not show.
func (ff *forwardFlags) contradictions() (out []Problem) {
	fail := func(flag, text string) { out = append(out, Problem{File: flag, Text: text}) }
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

func mentions(problems []Problem, flag string) bool {
	for _, p := range problems {
		if p.File == flag {
			return true
		}
	}
	return false
}

// flagOf is the flag that a key of the made configuration comes from.
func flagOf(path string) string {
	for _, m := range []struct{ part, flag string }{
		{"listeners.forward.listen", "--listen"}, {"listeners.forward.socket", "--socket-mode"}, {"timeouts.idle", "--idle"},
		{".endpoints", "--to"}, {".starttls", "--starttls"}, {"tls.server_name", "--server-name"}, {"tls.principals", "--principal"},
		{"tls.ca", "--ca"}, {"files.cert", "--cert"}, {"files.key", "--key"}, {"files.ca", "--ca"}, {"identities.", "--cert"},
	} {
		if strings.Contains(path, m.part) {
			return m.flag
		}
	}
	return "forward"
}

// withFlags puts flags where a text names keys of the file.
func withFlags(text string) string {
	return strings.NewReplacer("unsafe_plaintext_listen: true", "--unsafe-plaintext-listen", "with unsafe_plaintext_listen", "with --unsafe-plaintext-listen",
		"tls.server_name or tls.principals", "--server-name or --principal", "server_name", "--server-name").Replace(text)
}

// yaml is the configuration as text. Paths are absolute in it, so that it can be
// put anywhere.
func (ff *forwardFlags) yaml() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if ff.cert != "" || ff.key != "" {
		line("identities:\n  forward:\n    files: {cert: %s, key: %s}", quote(absolute(ff.cert)), quote(absolute(ff.key)))
	}
	line("upstreams:\n  forward:")
	if len(ff.to) > 0 {
		line("    endpoints: [%s]", quoteAll(absoluteSockets(ff.to)))
	}
	if ff.starttls != "" {
		line("    starttls: %s", quote(ff.starttls))
	}
	if !ff.plain {
		line("    tls: {%s}", strings.Join(ff.tlsKeys(), ", "))
	}
	line("listeners:\n  forward:")
	if ff.listen != "" {
		line("    listen: %s", quoteAll(absoluteSockets([]string{ff.listen})))
	}
	line("    upstream: forward")
	if ff.socketMode != "" {
		line("    socket: {mode: %s}", quote(ff.socketMode))
	}
	if ff.unsafePlaintextListen {
		line("    unsafe_plaintext_listen: true")
	}
	if ff.idle != 0 {
		line("    timeouts: {idle: %s}", ff.idle)
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
		keys = append(keys, "ca: "+quote(ca))
	}
	if ff.serverName != "" {
		keys = append(keys, "server_name: "+quote(ff.serverName))
	}
	if len(ff.principals) > 0 {
		keys = append(keys, "principals: ["+quoteAll(ff.principals)+"]")
	}
	return keys
}

func absolute(path string) string {
	if path == "" {
		return ""
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	return abs
}

// absoluteSockets makes the paths of unix sockets absolute.
func absoluteSockets(addresses []string) (out []string) {
	for _, a := range addresses {
		if path, ok := strings.CutPrefix(a, "unix:"); ok {
			a = "unix:" + absolute(path)
		}
		out = append(out, a)
	}
	return out
}

// quote is a text as a YAML scalar that nothing is expanded in. JSON's strings
// are YAML's.
func quote(s string) string {
	b, err := json.Marshal(strings.ReplaceAll(s, "${", "$${"))
	if err != nil {
		return `""`
	}
	return string(b)
}

func quoteAll(all []string) string {
	var out []string
	for _, s := range all {
		out = append(out, quote(s))
	}
	return strings.Join(out, ", ")
}
