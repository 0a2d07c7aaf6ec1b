package config

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/jsonschema-go/jsonschema"
	"go.yaml.in/yaml/v4"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/cmdtest"
)

var update = flag.Bool("update", false, "write the golden files")

func parse(text string) (*File, error) {
	return Parse("a.yaml", "/etc/a", []byte(text), cmdtest.Env)
}

// listening is good on every address, with an identity and more of the listener.
func listening(more string) string {
	return strings.NewReplacer("127.0.0.1", "0.0.0.0", "upstream: u", "upstream: u, "+more).Replace(cmdtest.Good) +
		"identities: {me: {files: {cert: a, key: b}}}"
}

// withEndpoint is good but for its endpoint.
func withEndpoint(endpoint string) string {
	return strings.Replace(cmdtest.Good, `"h:1"`, endpoint, 1)
}

func TestMistakesHaveTheirPlaceAndHint(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"empty file", "", "a.yaml:1:1: the file is empty"},
		{"no YAML", "a: [", "a.yaml:1:1: no YAML"},
		{"a tab", "listeners:\n\tl: {}", "a.yaml:2:1: no YAML: found character that cannot start any token; indent with spaces: this line has a tab"},
		{"a control", cmdtest.Good + "# a\u009b31m", "a.yaml:5:4: the character U+009B, which cannot be seen; remove it, or write it in double quotes as \"\\u009b\""},
		{"another control", cmdtest.Good + "# a\x1b[31m", "a.yaml:5:4: the character U+001B"},
		{"a direction", cmdtest.Good + "# \u202e", "a.yaml:5:3: the character U+202E"},
		{"a direction in quotes", cmdtest.Good + "log: {level: \"\\u202e\"}", `"\u202e" is none of`},
		{"UTF-16", "\xff\xfe" + strings.Join(strings.Split(cmdtest.Good, ""), "\x00") + "\x00", ""},
		{"line ends of Windows, and a mark", "\ufeff" + strings.ReplaceAll(cmdtest.Good, "\n", "\r\n"), ""},
		{"a list", "- a", "a.yaml:1:1: a list where a section is needed"},
		{"two documents", cmdtest.Good + "---\na: b", "a second document"},
		{"no listener", "upstreams: {u: {endpoints: [\"h:1\"]}}", "listeners: no listener"},
		{"unknown section", cmdtest.Good + "listner: 1", `a.yaml:5:1: listner: unknown key; did you mean listeners?`},
		{"health off and on", cmdtest.Good + "    health: {interval: 0s, rise: 2}", "upstreams.u.health.interval: 0s turns health off"},
		{"health without a pause", cmdtest.Good + "    health: {interval: 1ns}", "upstreams.u.health.interval: 1ns is too short"},
		{"http without port", cmdtest.Good + "    health: {http: {path: /primary}}", "upstreams.u.health.http: no port"},
		{"http path", cmdtest.Good + "    health: {http: {port: 1, path: primary}}", "no path; write one like /primary"},
		{"http of a unix socket", strings.Replace(cmdtest.Good, "h:1", "unix:/s", 1) + "    health: {http: {port: 1}}", "has no host that could be asked"},
		{"far from any key", cmdtest.Good + "zzzzzzzz: 1", "there are admin, metrics"},
		{"twice", cmdtest.Good + "log: {}\nlog: {}", "a.yaml:6:1: log: given twice"},
		{"bad name", cmdtest.Good + "identities: {Me: {}}", `a.yaml:5:14: identities.Me: "Me" is no name`},
		{"no source", cmdtest.Good + "identities: {me: {}}", "identities.me: no source of certificates; give files"},
		{"two sources", cmdtest.Good + "identities: {me: {files: {pkcs12: a}, spiffe: {socket: 'unix:///a'}}}", "identities.me: an identity has one source of certificates; give only one of files, spiffe"},
		{"spiffe over TCP", cmdtest.Good + "identities: {me: {spiffe: {socket: 'tcp://127.0.0.1:1'}}}", "identities.me.spiffe.socket: \"tcp://127.0.0.1:1\" is no socket of a SPIFFE agent"},
		{"secret without a namespace", cmdtest.Good + "identities: {me: {kubernetes: client-tls}}", `identities.me.kubernetes: "client-tls" is no Kubernetes Secret; write namespace/secret, like default/client-tls`},
		{"secret and files", cmdtest.Good + "identities: {me: {files: {pkcs12: a}, kubernetes: a/b}}", "identities.me: an identity has one source of certificates; give only one of files, kubernetes"},
		{"service without a namespace", withEndpoint("{kubernetes: 'db:5432'}"), `upstreams.u.endpoints[0].kubernetes: "db:5432" is no port of a Kubernetes Service: the namespace is missing; write namespace/service:port, like default/db:5432`},
		{"service without a port", withEndpoint("{kubernetes: default/db}"), "the port is missing"},
		{"service and address", withEndpoint("{kubernetes: 'default/db:1', address: 'a:1'}"), "upstreams.u.endpoints[0].kubernetes: an endpoint is an address or a Service; remove one of them"},
		{"service as an address", withEndpoint("'kubernetes:default/db:5432'"), `"kubernetes:default/db:5432" is no address; write a section: {kubernetes: "default/db:5432"}`},
		{"service as a URL", withEndpoint("'kubernetes://default/db:5432'"), `write a section: {kubernetes: "default/db:5432"}`},
		{"an endpoint that is nothing", withEndpoint("{weight: 2}"), `upstreams.u.endpoints[0]: no address; write {address: HOST:PORT}, or {kubernetes: "namespace/service:port"}`},
		{"service misspelled", withEndpoint("{kubernets: 'default/db:5432'}"), "kubernets"},
		{"spiffe without a socket", cmdtest.Good + "identities: {me: {spiffe: {}}}", "identities.me.spiffe: no socket"},
		{"step without anything", cmdtest.Good + "identities: {me: {step: {}}}", "identities.me.step: no fingerprint; give the SHA-256"},
		{"step with a bad URL", cmdtest.Good + "identities: {me: {step: {url: 'http://ca'}}}", "identities.me.step.url: \"http://ca\" is no URL of a step-ca"},
		{"step with a bad fingerprint", cmdtest.Good + "identities: {me: {step: {fingerprint: abc}}}", "identities.me.step.fingerprint: not the SHA-256 of a certificate"},
		{"step without a name", cmdtest.Good + "identities: {me: {step: {names: []}}}", "identities.me.step.names: empty"},
		{"step with a bad name", cmdtest.Good + "identities: {me: {step: {names: ['a b']}}}", "identities.me.step.names[0]: \"a b\" is no name"},
		{"step without a way to enrol", cmdtest.Good + "identities: {me: {step: {provisioner: p}}}", "identities.me.step: no way to enrol"},
		{"step with two ways to enrol", cmdtest.Good + "identities: {me: {step: {provisioner: p, token_file: t, storage: s}}}", "identities.me.step.token_file: enrol by a token, or by"},
		{"step with a token and no storage", cmdtest.Good + "identities: {me: {step: {token_file: t}}}", "identities.me.step.token_file: a token is good once"},
		{"pkcs12 beside cert", cmdtest.Good + "identities: {me: {files: {pkcs12: a, cert: b}}}", "identities.me.files.pkcs12: pkcs12 has certificate and key in one file"},
		{"nothing", cmdtest.Good + "    connect:", "nothing where a section is needed"},
		{"text for a section", cmdtest.Good + "    connect: fast", `a.yaml:5:14: upstreams.u.connect: "fast" where a section is needed`},
		{"list for a text", cmdtest.Good + "    starttls: [postgres]", "a list where a text is needed"},
		{"text for a list", cmdtest.Good + "    tls: {alpn: h2}", "write it in [brackets]"},
		{"no duration", cmdtest.Good + "    connect: {timeout: soon}", `a.yaml:5:24: upstreams.u.connect.timeout: "soon" is no duration; write one like`},
		{"negative duration", cmdtest.Good + "drain: {timeout: -1s}", "too short"},
		{"no bool", cmdtest.Good + "    required: maybe", `"maybe" is neither true nor false`},
		{"no number", cmdtest.Good + "limits: {connections: many}", "no whole number from 0"},
		{"attempts", cmdtest.Good + "    connect: {attempts: 0}", "from 1 to 100"},
		{"not in the list", cmdtest.Good + "    starttls: gopher\n    tls: {}", `"gopher" is none of none, postgres`},
		{"attempt longer than all", cmdtest.Good + "    connect: {attempt_timeout: 20s}", "upstreams.u.connect.attempt_timeout: 20s is longer than connect.timeout (10s)"},
		{"starttls alone", cmdtest.Good + "    starttls: postgres", "there is no tls to start"},
		{"preconnect before the client", cmdtest.Good + "    starttls: mysql\n    tls: {}\n    preconnect: {connections: 1}", "a.yaml:7:31: upstreams.u.preconnect.connections: with starttls: mysql TLS begins after"},
		{"a question of a probe that is never made", cmdtest.Good + "    health: {probe: on_failure, expect: x}", "upstreams.u.health.probe: on_failure probes no address that works"},
		{"a login of nobody", cmdtest.Good + "    health: {password_file: p}", "upstreams.u.health.password_file: whose? give user too"},
		{"a login without a protocol", cmdtest.Good + "    starttls: ldap\n    tls: {}\n    health: {user: me}", "a.yaml:7:20: upstreams.u.health.user: probes log in with starttls: mysql only"},
		{"a login and words", cmdtest.Good + "    starttls: mysql\n    tls: {}\n    health: {user: me, expect: x}", "quits then; remove user, or send and expect"},
		{"a login", cmdtest.Good + "    starttls: mysql\n    tls: {}\n    health: {user: me, password_file: p}", ""},
		{"preconnect of none", cmdtest.Good + "    starttls: xmpp\n    tls: {}\n    preconnect: {connections: 0}", ""},
		{"no port", "listeners: {l: {listen: \"127.0.0.1\", upstream: u}}\nupstreams: {u: {endpoints: [h]}}", "listeners.l.listen: \"127.0.0.1\" is no HOST:PORT"},
		{"endpoint", "listeners: {l: {listen: \"127.0.0.1:1\", upstream: u}}\nupstreams: {u: {endpoints: [h]}}", `a.yaml:2:29: upstreams.u.endpoints[0]: "h" is no HOST:PORT`},
		{"endpoint of port 0", strings.Replace(cmdtest.Good, "h:1", "h:0", 1), "nobody listens on port 0"},
		{"endpoint without host", strings.Replace(cmdtest.Good, "h:1", ":1", 1), "has no host"},
		{"no endpoints", strings.Replace(cmdtest.Good, `["h:1"]`, "[]", 1), "a.yaml:4:16: upstreams.u.endpoints: empty"},
		{"endpoint section", strings.Replace(cmdtest.Good, `"h:1"`, "{}", 1), "no address"},
		{"weight", strings.Replace(cmdtest.Good, `"h:1"`, `{address: "h:1", weight: 0}`, 1), "from 1 to 1000"},
		{"an address for srv", strings.Replace(cmdtest.Good, `endpoints: ["h:1"]`, `srv: "h:1"`, 1), "no SRV name"},
		{"endpoints and srv", cmdtest.Good + "    srv: _pg._tcp.h", "upstreams.u.srv: endpoints say where it is already"},
		{"srv and tls without a name", strings.Replace(cmdtest.Good, `endpoints: ["h:1"]`, "srv: _pg._tcp.h", 1) + "    tls: {}", "set tls.server_name or tls.principals"},
		{"per client of a unix socket", strings.Replace(cmdtest.Good, "127.0.0.1:1\"", "unix:/s\", limits: {per_client: 1}", 1), "no addresses to tell them apart by"},
		{"balance", cmdtest.Good + "    balance: fair", `"fair" is none of round_robin, random, least_connections`},
		{"breaker", cmdtest.Good + "    breaker: {open: 1m}", "upstreams.u.breaker.max_open: 30s is shorter than breaker.open (1m0s)"},
		{"unknown upstream", strings.Replace(cmdtest.Good, "upstream: u", "upstream: v", 1), `a.yaml:1:50: listeners.l.upstream: there is no "v" in upstreams; there is u`},
		{"unknown identity", cmdtest.Good + "    tls: {identity: me}", `upstreams.u.tls.identity: there is no "me": the file has no identities`},
		{"open plaintext", strings.Replace(cmdtest.Good, "127.0.0.1", "0.0.0.0", 1), "or set unsafe_plaintext_listen: true"},
		{"tls without anything", listening("tls: {}"), "listeners.l.tls: no certificate to show; give identity"},
		{"tls without principals", listening("tls: {identity: me}"), "listeners.l.tls: clients must show a certificate, and nothing says whose; give principals ([any]"},
		{"tls without roots", listening("tls: {identity: me, principals: [any]}"), "nothing verifies clients: give ca: FILE here, or files.ca of identity me"},
		{"tls of nobody", listening("tls: {identity: you, client: none}"), `listeners.l.tls.identity: there is no "you" in identities; there is me`},
		{"one of several", listening("tls: {identities: [me, you], client: none}"), `listeners.l.tls.identities: there is no "you"`},
		{"one and several", listening("tls: {identity: me, identities: [me], client: none}"), "listeners.l.tls.identities: identity names the certificate"},
		{"principals of none", listening("tls: {identity: me, client: none, principals: [any]}"), "listeners.l.tls.principals: clients show no certificate"},
		{"roots of none", listening("tls: {identity: me, client: none, ca: x}"), "listeners.l.tls.ca: clients show no certificate"},
		{"listener's principal", listening("tls: {identity: me, ca: x, principals: [db]}"), "listeners.l.tls.principals[0]: principal \"db\""},
		{"old TLS", listening("tls: {identity: me, client: none, min_version: \"1.1\"}"), `"1.1" is none of 1.2, 1.3`},
		{"tls and plaintext", listening("unsafe_plaintext_listen: true, tls: {identity: me, client: none}"), "the listener has tls, so nothing is plaintext"},
		{"starttls of plaintext", strings.Replace(cmdtest.Good, "upstream: u", "upstream: u, starttls: postgres", 1), "listeners.l.starttls: there is no tls to start for clients"},
		{"starttls of clients", listening("starttls: mysql, tls: {identity: me, client: none}"), `"mysql" is none of none, postgres`},
		{"two protocols", strings.Replace(listening("starttls: postgres, tls: {identity: me, client: none}"), "identities:", "    starttls: mysql\n    tls: {}\nidentities:", 1), "upstream u speaks mysql"},
		{"proxies of nowhere", listening("tls: {identity: me, client: none}, proxy_protocol: {}"), "listeners.l.proxy_protocol: nobody may send headers; give from"},
		{"no range", listening("proxy_protocol: {from: [lb]}"), `listeners.l.proxy_protocol.from[0]: "lb" is no range`},
		{"range with bits", listening("proxy_protocol: {from: [10.0.0.1/8]}"), "did you mean 10.0.0.0/8, or the address 10.0.0.1?"},
		{"proxies by a socket", strings.Replace(cmdtest.Good, "127.0.0.1:1\"", "unix:/s\", proxy_protocol: {from: [10.0.0.1]}", 1), "no addresses that could be in from"},
		{"proxies", listening("tls: {identity: me, client: none}, proxy_protocol: {from: [10.0.0.0/8, 192.0.2.1, '2001:db8::/32']}"), ""},
		{"ready-made connections of nobody", cmdtest.Good + "    proxy_protocol: v2\n    preconnect: {connections: 1}", "upstreams.u.proxy_protocol: a connection that is made before its client"},
		{"proxy protocol", cmdtest.Good + "    proxy_protocol: v3", `"v3" is none of none, v1, v2`},
		{"tls anywhere", listening("tls: {identity: me, ca: x, principals: [any]}"), ""},
		{"tls for anybody", listening("tls: {identities: [me], client: none}"), ""},
		{"every address", strings.Replace(cmdtest.Good, "127.0.0.1", "", 1), "every address of this host"},
		{"same address", cmdtest.Good + "", ""},
		{"a port", strings.Replace(cmdtest.Good, "\"127.0.0.1:1\"", "5432", 1), ""},
		{"no port", strings.Replace(cmdtest.Good, "\"127.0.0.1:1\"", "70000", 1), `"70000" is no HOST:PORT`},
		{"an interface", strings.Replace(cmdtest.Good, "127.0.0.1:1", "%eth0:1", 1), ""},
		{"no interface", strings.Replace(cmdtest.Good, "127.0.0.1:1", "%:1", 1), "names no network interface; write one like %eth0:1"},
		{"an abstract socket", strings.Replace(cmdtest.Good, "127.0.0.1:1", "unix:@a", 1), ""},
		{"mode of an abstract socket", strings.Replace(cmdtest.Good, "127.0.0.1:1\"", "unix:@a\", socket: {mode: \"0600\"}", 1), "only a listener on unix:/path"},
		{"abstract admin", cmdtest.Good + "admin: {listen: \"unix:@a\"}", "every user of this host can open"},
		{"an abstract endpoint", strings.Replace(cmdtest.Good, "h:1", "unix:@a", 1), ""},
		{"addresses", strings.Replace(cmdtest.Good, "\"127.0.0.1:1\"", "[127.0.0.1:1, \"[::1]:1\", localhost:1, unix:/s]", 1), ""},
		{"no addresses", strings.Replace(cmdtest.Good, "\"127.0.0.1:1\"", "[]", 1), "listeners.l.listen: empty; give at least one"},
		{"an open address of several", strings.Replace(cmdtest.Good, "\"127.0.0.1:1\"", "[127.0.0.1:1, 192.0.2.1:1]", 1), "a.yaml:1:39: listeners.l.listen[1]: plaintext on 192.0.2.1:1"},
		{"overlapping addresses", strings.Replace(cmdtest.Good, "\"127.0.0.1:1\"", "[127.0.0.1:1, 0.0.0.0:1], unsafe_plaintext_listen: true", 1), "0.0.0.0:1 overlaps with 127.0.0.1:1, an address of listener l"},
		{"both families", strings.Replace(cmdtest.Good, "\"127.0.0.1:1\"", "[\"[::]:1\", 0.0.0.0:1], unsafe_plaintext_listen: true", 1), ""},
		{"the address of metrics", cmdtest.Good + "metrics: {listen: \"127.0.0.1:1\"}", "listeners.l.listen: 127.0.0.1:1 is the address of metrics already"},
		{"an address of metrics", cmdtest.Good + "metrics: {listen: \"0.0.0.0:1\"}", "listeners.l.listen: 127.0.0.1:1 overlaps with 0.0.0.0:1, an address of metrics"},
		{"socket of TCP", strings.Replace(cmdtest.Good, "upstream: u", "upstream: u, socket: {mode: \"0600\"}", 1), "only a listener on unix:/path"},
		{"mode", strings.Replace(cmdtest.Good, "127.0.0.1:1\"", "unix:/s\", socket: {mode: rw}", 1), "no mode; write it in octal"},
		{"owner", strings.Replace(cmdtest.Good, "127.0.0.1:1\"", "unix:/s\", socket: {owner: nobody-at-all}", 1), `there is no user "nobody-at-all"`},
		{"min version", cmdtest.Good + "    tls: {min_version: \"1.1\"}", "set unsafe_min_version: true"},
		{"max version", cmdtest.Good + "    tls: {max_version: \"1.1\"}", `upstreams.u.tls.max_version: 1.1 is below min_version (1.2); set that lower, too`},
		{"crossed versions", cmdtest.Good + "    tls: {min_version: \"1.3\", max_version: \"1.2\"}", "upstreams.u.tls.max_version: 1.2 is below min_version (1.3)"},
		{"old versions", cmdtest.Good + "    tls: {min_version: \"1.0\", max_version: \"1.1\", unsafe_min_version: true}", ""},
		{"ciphers", cmdtest.Good + "    tls: {ciphers: [ECDHE-RSA-AES128-GCM-SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA]}", ""},
		{"unsafe cipher", cmdtest.Good + "    tls: {ciphers: [ECDHE-RSA-AES128-SHA, AES128-SHA]}", "upstreams.u.tls.ciphers[1]: AES128-SHA is broken or has no forward secrecy; use another, or set unsafe_ciphers: true"},
		{"unsafe cipher that is allowed", cmdtest.Good + "    tls: {ciphers: [AES128-SHA, RC4-SHA], unsafe_ciphers: true}", ""},
		{"DHE", cmdtest.Good + "    tls: {ciphers: [DHE-RSA-AES256-SHA]}", "DHE-RSA-AES256-SHA needs DHE (Diffie-Hellman without elliptic curves), which Go's TLS does not have"},
		{"DHE of the IANA", cmdtest.Good + "    tls: {ciphers: [TLS_DHE_RSA_WITH_AES_128_CBC_SHA]}", "needs DHE"},
		{"cipher of TLS 1.3", cmdtest.Good + "    tls: {ciphers: [TLS_AES_128_GCM_SHA256]}", "TLS_AES_128_GCM_SHA256 is of TLS 1.3, whose suites are always offered"},
		{"cipher string", cmdtest.Good + "    tls: {ciphers: [\"HIGH:!aNULL\"]}", "is no cipher suite of Go's TLS; it has "},
		{"ciphers without use", cmdtest.Good + "    tls: {unsafe_ciphers: true, min_version: \"1.3\"}", "upstreams.u.tls: ciphers and unsafe_ciphers choose suites up to TLS 1.2"},
		{"curves", cmdtest.Good + "    tls: {curves: [x25519, P-256, secp384r1, X25519MLKEM768]}", ""},
		{"unknown curve", cmdtest.Good + "    tls: {curves: [brainpoolP256r1]}", `upstreams.u.tls.curves[0]: "brainpoolP256r1" is no key exchange of Go's TLS`},
		{"post-quantum and not", cmdtest.Good + "    tls: {curves: [X25519MLKEM768], post_quantum: off}", "upstreams.u.tls.curves[0]: X25519MLKEM768 is post-quantum, and post_quantum is off"},
		{"renegotiation of TLS 1.3", cmdtest.Good + "    tls: {min_version: \"1.3\", unsafe_renegotiation: true}", "upstreams.u.tls.unsafe_renegotiation: TLS 1.3, which min_version demands, has no renegotiation"},
		{"resumption", cmdtest.Good + "    tls: {resumption: never}", `"never" is none of auto, off`},
		{"principal", cmdtest.Good + "    tls: {principals: [db]}", "upstreams.u.tls.principals[0]: principal \"db\": "},
		{"principals of nobody", cmdtest.Good + "    tls: {principals: [any], unsafe_skip_verify: true}", "have no meaning"},
		{"unix endpoint and tls", strings.Replace(cmdtest.Good, "h:1", "unix:/s", 1) + "    tls: {}", "set tls.server_name or tls.principals"},
		{"identity without files", cmdtest.Good + "identities: {me: {}}", "identities.me: no source of certificates"},
		{"identity without certificate", cmdtest.Good + "    tls: {identity: me}\nidentities: {me: {files: {ca: a, crl: b}}}", ""},
		{"identity with a list alone", cmdtest.Good + "identities: {me: {files: {crl: b}}}", "identities.me.files: no cert; give the file with the certificate chain, or ca alone"},
		{"identity with a key and roots", cmdtest.Good + "identities: {me: {files: {ca: a, key: b}}}", "identities.me.files: no cert"},
		{"nothing to show", strings.Replace(listening("tls: {identity: me, client: none}"), "cert: a, key: b", "ca: a", 1), "listeners.l.tls.identity: identity me has only roots, and a TLS server must show a certificate"},
		{"identity without key", cmdtest.Good + "identities: {me: {files: {cert: a}}}", "identities.me.files: no key"},
		{"a token for all, and none", cmdtest.Good + "admin: {token_for: all}", "admin.token_for: there is no token that all could need; give token_file"},
		{"mode of admin", cmdtest.Good + "admin: {listen: \"unix:/a\", mode: \"0660\", owner: \"0:0\"}", ""},
		{"mode of the default socket", cmdtest.Good + "admin: {mode: \"0660\"}", ""},
		{"mode of admin for all", cmdtest.Good + "admin: {mode: \"0666\"}", "admin.mode: 0666 lets every user of this host change and end everything"},
		{"mode of admin for all, on purpose", cmdtest.Good + "admin: {mode: \"0666\", unsafe_admin_listen: true}", ""},
		{"mode of TCP", cmdtest.Good + "admin: {listen: \"127.0.0.1:9\", mode: \"0660\"}", "admin.mode: only a unix socket has a file"},
		{"owner of TCP", cmdtest.Good + "admin: {listen: \"127.0.0.1:9\", owner: \"0\"}", "admin.owner: only a unix socket has a file"},
		{"open admin", cmdtest.Good + "admin: {listen: \"0.0.0.0:1\"}", "unsafe_admin_listen: true"},
		{"dns", cmdtest.Good + "dns: {servers: [ns.internal]}", "no address of a DNS server"},
		{"variable", cmdtest.Good + "dns: {servers: [\"${NOT_THERE}\"]}", "the environment has no variable NOT_THERE"},
		{"an anchor is no trick", cmdtest.Good + "x: &x {a: *x}", "a.yaml:5:11: *x stands for a section that it is a part of"},
		{"long socket path", strings.Replace(cmdtest.Good, "127.0.0.1:1", "unix:/"+strings.Repeat("x", 120), 1), "listeners.l.listen: the path of a socket has at most 103 bytes"},
		{"long relative socket path", strings.Replace(cmdtest.Good, "127.0.0.1:1", "unix:"+strings.Repeat("x", 98), 1), "at most 103 bytes, and /etc/a/xx"},
		{"long endpoint path", strings.Replace(cmdtest.Good, "h:1", "unix:/"+strings.Repeat("x", 104), 1), "upstreams.u.endpoints[0]: the path of a socket has at most 103"},
		{"endpoint path of 103", strings.Replace(cmdtest.Good, "h:1", "unix:/"+strings.Repeat("x", 102), 1), ""},
		{"same socket by two names", strings.Replace(cmdtest.Good, "{l: {listen: \"127.0.0.1:1\", upstream: u}}", "{k: {listen: \"unix:s\", upstream: u}, l: {listen: \"unix:/etc/a/./s\", upstream: u}}", 1), "unix:/etc/a/./s is the address of listener k already"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parse(tt.text)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error:\n%v\nwant one with\n%s", err, tt.want)
			}
		})
	}
}

func TestNotes(t *testing.T) {
	text := listening("starttls: postgres, tls: {identity: me, client: none}")
	for upstream, want := range map[string]int{"": 0, "    starttls: postgres\n    tls: {}\n": 1, "    tls: {}\n": 0} {
		f, err := parse(strings.Replace(text, "identities:", upstream+"identities:", 1))
		if err != nil {
			t.Fatal(err)
		}
		if notes := f.Notes(); len(notes) != want || want > 0 && !strings.Contains(notes[0], "channel_binding=disable") {
			t.Errorf("notes of %q: %q", upstream, notes)
		}
	}
}

func TestStartTLSOptions(t *testing.T) {
	for _, tt := range []struct{ keys, want string }{
		{"starttls: smtp, starttls_options: {ehlo_name: mail.example.com, timeout: 5m}, connect: {timeout: 6m}", ""},
		{"starttls: postgres, starttls_options: {direct: true}", ""},
		{"starttls: postgres, starttls_options: {direct: true}, tls: {alpn: [x, postgresql]}", ""},
		{"starttls: nats, starttls_options: {direct: true}", ""},
		{"starttls: postgres, starttls_options: {direct: true}, tls: {alpn: [x]}", `upstreams.u.tls.alpn: "postgresql" is missing`},
		{"starttls_options: {direct: true}", "there is no starttls that these are for"},
		{"starttls: none, starttls_options: {timeout: 1s}", "there is no starttls that these are for"},
		{"starttls: imap, starttls_options: {direct: true}", "starttls imap has no options"},
		{"starttls: imap, starttls_options: {timeout: 1s}", ""},
		{"starttls: smtp, starttls_options: {timeout: 5m}", "upstreams.u.starttls_options.timeout: 5m0s is longer than connect.timeout (10s)"},
		{"starttls: smtp, starttls_options: {ehlo_name: a b}", "no host name"},
		{"starttls: ftp", "upstreams.u.starttls: FTP over TLS (AUTH TLS) is not supported"},
	} {
		if !strings.Contains(tt.keys, "tls: {alpn") {
			tt.keys += ", tls: {}"
		}
		f, err := parse("listeners: {l: {listen: \"127.0.0.1:0\", upstream: u}}\nupstreams: {u: {endpoints: [\"h:1\"], " + tt.keys + "}}\n")
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", tt.keys, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %v, want %q", tt.keys, err, tt.want)
		case tt.want == "" && strings.Contains(tt.keys, "direct: true}, tls: {}") && strings.Contains(tt.keys, "postgres"):
			if cfg, err := f.upstreamConfig(f.Upstreams[0], Parts{Roots: func(string) *certs.Source { return nil }}); err != nil || !cfg.StartTLSOptions.Direct {
				t.Errorf("%s: %+v, %v", tt.keys, cfg, err)
			} else if tls, err := cfg.TLS("h", "h:1"); err != nil || !slices.Equal(tls.NextProtos, []string{"postgresql"}) {
				t.Errorf("%s: ALPN %v, %v", tt.keys, tls, err)
			}
		}
	}
}

// A probe that ends before a session would must be named: its server is unhealthy although
// sessions reach it.
func TestNoteOfAShortHealthTimeout(t *testing.T) {
	for keys, want := range map[string]string{
		"":                            "",
		"    health: {timeout: 2s}\n": "upstreams.u.health.timeout: 2s is shorter than connect.timeout (10s)",
		"    health: {timeout: 2s}\n    connect: {attempt_timeout: 5s}\n": "upstreams.u.health.timeout: 2s is shorter than connect.attempt_timeout (5s)",
		"    health: {timeout: 5s}\n    connect: {attempt_timeout: 5s}\n": "",
		"    health: {timeout: 10s}\n":                                    "",
		"    connect: {timeout: 60s}\n":                                   "",
	} {
		f, err := parse("listeners: {l: {listen: \"127.0.0.1:0\", upstream: u}}\nupstreams:\n  u:\n    endpoints: [\"h:1\"]\n" + keys)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(f.Notes(), "\n"); !strings.HasPrefix(got, want) || (got == "") != (want == "") {
			t.Errorf("notes of %q: %q, want %q", keys, got, want)
		}
	}
}

func TestAllMistakesInOnePass(t *testing.T) {
	_, err := parse("listeners:\n  l:\n    listn: x\n    listen: 127.0.0.1:0\n    upstream: nowhere\nupstreams:\n  u:\n    endpoints: [db]\n    connect: {timeout: soon}\n    starttls: gopher\n")
	var got []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		got = append(got, strings.Join(strings.SplitN(line, ":", 5)[:4], ":"))
	}
	want := []string{"a.yaml:3:5: listeners.l.listn", "a.yaml:5:15: listeners.l.upstream", "a.yaml:8:17: upstreams.u.endpoints[0]",
		"a.yaml:9:24: upstreams.u.connect.timeout", "a.yaml:10:15: upstreams.u.starttls"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s", diff)
	}
}

func TestVariablesAndPaths(t *testing.T) {
	f, err := parse(`listeners: {l: {listen: "127.0.0.1:${PORT}", upstream: u, unsafe_plaintext_listen: "${YES}", timeouts: {idle: "${TWO}"}}}
identities: {me: {files: {cert: "${APP_CERT}", key: "${APP_KEY}", ca: "$${x}"}}}
upstreams: {u: {endpoints: ["h:${PORT}"], tls: {identity: me, ca: sub/ca.crt}}}`)
	if err != nil {
		t.Fatal(err)
	}
	l, id := f.Listeners[0], f.Identities[0].Files
	if l.Listen[0] != "127.0.0.1:5432" || !l.UnsafePlaintextListen || l.Timeouts.Idle.String() != "2s" {
		t.Errorf("listener %+v", l)
	}
	if id.Cert != "/etc/a/app.crt" || id.Key != "/keys/app.key" || id.CA != "/etc/a/${x}" || f.Upstreams[0].TLS.CA != "/etc/a/sub/ca.crt" {
		t.Errorf("files %+v, ca %s", id, f.Upstreams[0].TLS.CA)
	}
	var b bytes.Buffer
	f.PrintYAML(&b)
	if !strings.Contains(b.String(), "${PORT}") || strings.Contains(b.String(), "5432") {
		t.Errorf("printed: %s", b.String())
	}
}

// Paths are relative to the file, those of sockets too.
func TestSocketPathsStartAtTheFile(t *testing.T) {
	f, err := parse(`admin: {listen: "unix:run/admin.sock"}
listeners: {l: {listen: "unix:in.sock", upstream: u}}
upstreams: {u: {endpoints: ["unix:../out.sock", {address: "unix:/abs.sock"}, "h:1"]}}`)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{f.Admin.Listen, f.Listeners[0].Listen[0]}
	for _, e := range f.Upstreams[0].Endpoints {
		got = append(got, e.Address)
	}
	want := []string{"unix:/etc/a/run/admin.sock", "unix:/etc/a/in.sock", "unix:/etc/out.sock", "unix:/abs.sock", "h:1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func schemaOf(t *testing.T) *jsonschema.Resolved {
	t.Helper()
	var s jsonschema.Schema
	if err := json.Unmarshal(Schema, &s); err != nil {
		t.Fatal(err)
	}
	r, err := s.Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func asJSON(t *testing.T, text []byte) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	json.Unmarshal(b, &out)
	return out
}

func TestSchemaIsCurrent(t *testing.T) {
	schema := configSchema()
	text, err := os.ReadFile("../../docs/keys.yaml")
	if err != nil {
		t.Fatal(err)
	}
	withExamples(schema, asJSON(t, text))
	want, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile("schema.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(want), string(Schema)); diff != "" {
		t.Errorf("schema.json is not current; run go test ./cmd/ambassador/internal/config -run TestSchemaIsCurrent -update\n%s", diff)
	}
}

// withExamples adds the values of the catalogue of keys to the schema: the first of each
// key that is no section.
func withExamples(schema map[string]any, value any) {
	switch v := value.(type) {
	case map[string]any:
		properties, _ := schema["properties"].(map[string]any)
		named, _ := schema["additionalProperties"].(map[string]any)
		for _, key := range slices.Sorted(maps.Keys(v)) {
			p, ok := properties[key].(map[string]any)
			if !ok {
				p = named
			}
			if p == nil {
				continue
			}
			if _, section := v[key].(map[string]any); !section && p["examples"] == nil {
				p["examples"] = []any{v[key]}
			}
			withExamples(p, v[key])
		}
	case []any:
		for _, item := range v {
			if items, ok := schema["items"].(map[string]any); ok {
				withExamples(items, item)
			}
		}
	}
	several, _ := schema["anyOf"].([]any)
	for _, one := range several {
		if m, ok := one.(map[string]any); ok && m["type"] != "string" {
			withExamples(m, value)
		}
	}
}

// A default is declared once, where schema, description and decoder have it from: no
// description names a value by itself.
func TestDefaultsAreDeclared(t *testing.T) {
	named := regexp.MustCompile(`Default [^:]`)
	n := 0
	var walk func(path string, schema any)
	walk = func(path string, schema any) {
		m, ok := schema.(map[string]any)
		if !ok {
			return
		}
		text, _ := m["description"].(string)
		_, has := m["default"]
		if exception := strings.HasSuffix(path, ".connect.attempt_timeout"); has != named.MatchString(text) && !exception {
			t.Errorf("%s: default %v; described as %q", path, m["default"], text)
		}
		if has {
			n++
		}
		properties, _ := m["properties"].(map[string]any)
		for key, p := range properties {
			walk(path+"."+key, p)
		}
		walk(path+".*", m["additionalProperties"])
		walk(path+"[]", m["items"])
		several, _ := m["anyOf"].([]any)
		for _, s := range several {
			walk(path, s)
		}
	}
	walk("", configSchema())
	if n < 40 {
		t.Errorf("%d defaults were seen", n)
	}
}

// What the file does not have is as the schema says.
func TestDefaultsAreSet(t *testing.T) {
	f, err := parse(cmdtest.Good + "    tls: {}\n    health: {http: {port: 1}}\n")
	if err != nil {
		t.Fatal(err)
	}
	u, l := f.Upstreams[0], f.Listeners[0]
	got := []any{f.Drain, f.Limits, f.Log, f.Sandbox, f.Admin.TokenFor, l.Timeouts, l.Socket.Mode, l.StartTLS, u.Connect, u.Breaker, u.Health, u.Preconnect,
		u.Balance, u.Resolve, u.StartTLS, u.ProxyProtocol, u.Required, u.TLS.MinVersion}
	want := []any{DrainSection{Timeout: 25 * time.Second}, LimitsSection{Memory: 64 << 20}, LogSection{Level: "info", Format: "auto"}, SandboxSection{"auto"}, "changes",
		TimeoutsSection{Handshake: 10 * time.Second}, "0600", "none", ConnectSection{Timeout: 10 * time.Second, Attempts: 3, Backoff: 100 * time.Millisecond},
		BreakerSection{Failures: 5, Probes: 1, Open: 5 * time.Second, MaxOpen: 30 * time.Second},
		HealthSection{Interval: 5 * time.Second, IdleInterval: time.Minute, Rise: 2, Fall: 3, HTTP: HTTPSection{Port: 1, Path: "/", Status: 200}, Probe: "always"},
		PreconnectSection{MaxAge: 20 * time.Second}, "round_robin", ResolveSection{Every: 30 * time.Second, KeepGone: 30 * time.Second}, "none", "none", true, "1.2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestExamplesLoadAndValidate(t *testing.T) {
	examples, _ := filepath.Glob("../../examples/*.yaml")
	if len(examples) < 3 {
		t.Fatalf("examples: %v", examples)
	}
	schema := schemaOf(t)
	for _, path := range examples {
		f, err := (&Source{Path: path}).Load(cmdtest.Env)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		if err := schema.Validate(asJSON(t, f.printed)); err != nil {
			t.Errorf("%s and the schema: %v", path, err)
		}
	}
	for _, wrong := range []string{cmdtest.Good + "listner: {}", cmdtest.Good + "    required: [1]", cmdtest.Good + "    starttls: gopher", "listeners: {}",
		cmdtest.Ruled("socks5: {}", "{hots: a.b, upstream: net}"), cmdtest.Ruled("socks5: {}", "{host: [], upstream: net}"), cmdtest.Ruled("socks5: {user: a}", cmdtest.AllowAll), cmdtest.Good + "    mark: -1"} {
		if schema.Validate(asJSON(t, []byte(wrong))) == nil {
			t.Errorf("the schema takes\n%s", wrong)
		}
	}
}

// TestSchemaRefusesWhatCheckRefuses proves that an editor shows the mistakes that JSON
// Schema can express.
func TestSchemaRefusesWhatCheckRefuses(t *testing.T) {
	schema := schemaOf(t)
	if err := schema.Validate(asJSON(t, []byte(cmdtest.Good))); err != nil {
		t.Fatal(err)
	}
	in := func(old, new string) string { return strings.Replace(cmdtest.Good, old, new, 1) }
	for _, text := range []string{
		"listeners: {}\nupstreams: {}",
		in(", upstream: u", ""),
		in("upstream: u", "upstream: u, rules: [{upstream: u}]"),
		in(`listen: "127.0.0.1:1", `, ""),
		in("upstream: u", "upstream: u, proxy_protocol: {}"),
		in(`endpoints: ["h:1"]`, "balance: random"),
		cmdtest.Good + "    dynamic: true\n",
		cmdtest.Good + "    starttls: postgres\n",
		cmdtest.Good + "    health: {http: {path: /primary}}\n",
		cmdtest.Good + "    health: {rise: many}\n",
		cmdtest.Good + "identities: {me: {}}",
		cmdtest.Good + "identities: {me: {files: {pkcs12: a}, spiffe: {socket: 'unix:///a'}}}",
		cmdtest.Good + "identities: {me: {files: {cert: a}}}",
		cmdtest.Good + "identities: {me: {files: {key: a}}}",
		cmdtest.Good + "identities: {me: {step: {url: 'https://a:1'}}}",
		cmdtest.Good + "identities: {me: {spiffe: {}}}",
		cmdtest.Good + "identities: {Me: {files: {pkcs12: a}}}",
		cmdtest.Good + "log: {level: loud}",
		cmdtest.Good + "drain: {delay: soon}",
		cmdtest.Good + "zzz: 1",
	} {
		if _, err := parse(text); err == nil {
			t.Errorf("check takes\n%s", text)
		}
		if schema.Validate(asJSON(t, []byte(text))) == nil {
			t.Errorf("the schema takes\n%s", text)
		}
	}
	for _, text := range []string{cmdtest.Good + "    dynamic: false\n", cmdtest.Good + "    starttls: none\n", cmdtest.Good + "    starttls: postgres\n    tls: {}\n",
		cmdtest.Good + "    health: {rise: \"${RISE}\"}\n", cmdtest.Good + "identities: {me: {files: {ca: a}}}"} {
		if err := schema.Validate(asJSON(t, []byte(text))); err != nil {
			t.Errorf("the schema refuses %v\n%s", err, text)
		}
	}
}

// TestDoubts proves that what is probably a mistake is reported, with its place.
func TestDoubts(t *testing.T) {
	f, err := parse(strings.Replace(cmdtest.Good, "h:1", "h:5432", 1) + "    tls: {}\n  spare: {endpoints: [\"h:25\"]}\nidentities: {me: {files: {cert: a, key: b}}}")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range f.Doubts() {
		got = append(got, f.Placed(d))
	}
	want := []string{
		"a.yaml:7:18: identities.me: no upstream and no listener uses it; name it in a tls.identity, or remove it",
		"a.yaml:4:17: upstreams.u.endpoints[0]: at port 5432 servers begin in plaintext, and TLS begins at once; set starttls: postgres if this is one",
		"a.yaml:6:10: upstreams.spare: no listener leads to it; name it in a listener's upstream or rules, or remove it",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, more := range []string{"    starttls: postgres\n    tls: {}\n", "    tls: {alpn: [postgresql]}\n", ""} {
		f, err := parse(strings.Replace(cmdtest.Good, "h:1", "h:5432", 1) + more)
		if err != nil {
			t.Fatal(err)
		}
		if doubts := f.Doubts(); len(doubts) > 0 {
			t.Errorf("%q: %q", more, doubts)
		}
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte(cmdtest.Good))
	examples, _ := filepath.Glob("../../examples/*.yaml")
	for _, path := range examples {
		b, _ := os.ReadFile(path)
		f.Add(b)
	}
	f.Add([]byte("a: &a [*a, *a]\n<<: *a"))
	f.Add([]byte("listeners: {l: {listen: &x [*x]}}"))
	f.Add([]byte(shared(3, 3)))
	f.Add([]byte(bomb(20)))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Parse("fuzz.yaml", "/", b, cmdtest.Env)
		if err == nil {
			file.Warnings()
			file.Notes()
			file.RuleLabels()
			for _, l := range file.Listeners {
				if _, err := l.PolicyRules(); err != nil {
					t.Errorf("rules that were checked: %v", err)
				}
			}
			for _, id := range file.Identities {
				id.Key()
			}
			return
		}
		for _, p := range err.(*Error).Problems {
			if p.Line < 1 || p.Text == "" {
				t.Errorf("a problem without a place: %+v", p)
			}
		}
	})
}
