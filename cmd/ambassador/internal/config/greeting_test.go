package config

import (
	"strings"
	"testing"
)

// A client that waits over a reload is refused if it would be greeted otherwise now, and
// only then.
func TestGreeting(t *testing.T) {
	const was = `listeners: {l: {listen: "0.0.0.0:1", socks5: {}, upstream: u, limits: {connections: 9}, timeouts: {idle: 1h},
  tls: {identity: me, ca: ca.crt, principals: ["dns:a"]}}}
upstreams: {u: {dynamic: true}, v: {dynamic: true}}
identities: {me: {files: {cert: a, key: b}}, you: {files: {cert: a, key: b}}}
`
	greeting := func(text string) string {
		t.Helper()
		f, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return f.greeting(f.Listeners[0])
	}
	for _, tt := range []struct {
		old, new string
		same     bool
	}{
		{"", "", true},
		{"upstream: u", "rules: [{deny: x}]", true},
		{"connections: 9", "connections: 8", true},
		{"idle: 1h", "idle: 2h", true},
		{"socks5: {}", "socks5: {users_file: f}", true}, // whose users l4 compares
		{"socks5: {}", "http_connect: {}", false},
		{"dns:a", "dns:b", false},
		{"ca.crt", "system", false},
		{`principals: ["dns:a"]`, `principals: ["dns:a"], min_version: "1.3"`, false},
		{"identity: me", "identity: you", false},
		{"{me: {files: {cert: a", "{me: {files: {cert: c", false},
		{"upstream: u", "upstream: u, proxy_protocol: {from: [10.0.0.0/8]}", false},
		{"socks5: {}, upstream: u", "socks5: {users_file: f}, context: true, upstream: u", false},
	} {
		if got := greeting(strings.Replace(was, tt.old, tt.new, 1)) == greeting(was); got != tt.same {
			t.Errorf("%q for %q: the greeting is the same: %t", tt.new, tt.old, got)
		}
	}
}

// Every key of a listener is known to decide how its clients are greeted, or not to.
func TestGreetingKnowsEveryKey(t *testing.T) {
	greets := map[string]bool{
		"tls": true, "starttls": true, "proxy_protocol": true, "socks5": true, "http_connect": true,
		"original_destination": true, "sni": true, "context": true,

		"listen": false, "socket": false, "unsafe_plaintext_listen": false, // where a client connects
		"upstream": false, "rules": false, // judged again after the reload
		"timeouts": false, "limits": false, // they count for those that come later
		"log": false, // what is written when a session ends
	}
	for _, f := range (&ListenerSection{}).fields() {
		if _, ok := greets[f.key]; !ok {
			t.Errorf("listeners.*.%s: if it decides how clients are greeted, add it to greeting in wire.go; in any case list it here", f.key)
		}
		delete(greets, f.key)
	}
	for key := range greets {
		t.Errorf("%s is no key of a listener", key)
	}
}
