package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// ours lists every package of this module and the packages of ours that it may import.
// Each import has its reason, in a comment on its line (TestArrowsHaveReasons). For a
// new package, write its doc.go first and then its lines here.
var ours = map[string][]string{
	"ambassador/cmd/ambassador": {
		"ambassador/l4/bind",                            // the socket of ca
		"ambassador/certs",                              // the folder and the password file of ca
		"ambassador/certs/embedded",                     // the CA of ca and demo
		"ambassador/cmd/ambassador/internal/admin",      // bounds the connections of ca and demo
		"ambassador/cmd/ambassador/internal/cli",        // its commands
		"ambassador/cmd/ambassador/internal/config",     // files made of flags, check, schema
		"ambassador/cmd/ambassador/internal/explain",    // check --explain
		"ambassador/cmd/ambassador/internal/handover",   // what the program before has left
		"ambassador/cmd/ambassador/internal/keyhelp",    // explain
		"ambassador/l4/carry",                           // the version of the state, for version
		"ambassador/cmd/ambassador/internal/kubeinject", // kube inject
		"ambassador/cmd/ambassador/internal/livetest",   // test
		"ambassador/cmd/ambassador/internal/logs",       // the log of ca, and whether a terminal reads that of demo
		"ambassador/cmd/ambassador/internal/output",     // prints
		"ambassador/cmd/ambassador/internal/process",    // runs it
		"ambassador/cmd/ambassador/internal/program",    // the streams and environment that it passes to every package
		"ambassador/cmd/ambassador/internal/report",     // what socks5 --report has allowed
		"ambassador/cmd/ambassador/internal/secrets",    // files that check reads
		"ambassador/l4/descriptors",                     // the bound of the connections of ca and demo
		"ambassador/l4",                                 // the drain of demo
		"ambassador/cmd/ambassador/internal/handover",   // what the program before has left
		"ambassador/l4/carry",                           // the version of the state, for version
		"ambassador/l4/starttls",                        // the names of protocols, for help
		"ambassador/policy",                             // ports and hosts of --allow
		"ambassador/cmd/ambassador/internal/livetest",   // test
	},
	"ambassador/l4": {
		"ambassador/l4/bind",        // addresses of listeners
		"ambassador/l4/descriptors", // how many sessions its descriptors allow
		"ambassador/l4/carry",       // the state that the next program continues
		"ambassador/l4/destination", // what a client asks for
		"ambassador/l4/ending",      // the reason of an end, and what it means
		"ambassador/l4/handshake",   // bounds TLS handshakes with clients
		"ambassador/l4/htpasswd",    // passwords of clients
		"ambassador/l4/limits",      // sessions of each client, turns
		"ambassador/l4/unixsocket",  // listeners
		"ambassador/l4/nameserver",  // how long a lookup for rules waits
		"ambassador/l4/netconn",     // bounds, resets, kinds of errors
		"ambassador/l4/outcome",     // stages, reasons, the record
		"ambassador/l4/peer",        // the process of a client on this host
		"ambassador/l4/preface",     // what clients say first
		"ambassador/l4/relay",       // sockets, and the relay stage
		"ambassador/l4/relay/load",  // how long events of loops took
		"ambassador/l4/request",     // requests of clients, and their answers
		"ambassador/l4/starttls",    // the client's part of a dialogue
		"ambassador/l4/task",        // runs sessions on loops
		"ambassador/l4/tlscause",    // why the TLS of a client failed
		"ambassador/l4/tlsrecord",   // the state of the TLS of a client
		"ambassador/l4/upstream",    // connects
		"ambassador/l4/watch",       // clients that reset while a session is established
		"ambassador/policy",         // rules and limits
	},
	"ambassador/l4/carry": {
		"ambassador/l4/outcome",    // the records of sessions
		"ambassador/l4/relay",      // the state of a session at the relay
		"ambassador/l4/unixsocket", // the file of a listener
		"ambassador/l4/upstream",   // what an upstream knows
		"ambassador/policy",        // the source of a client
	},
	"ambassador/l4/upstream": {
		"ambassador/l4/destination", // what a client of a dynamic upstream asks for
		"ambassador/l4/ending",      // the reason of a failed attempt, and what it means
		"ambassador/l4/evicted",     // the breakers of destinations that the cache has evicted
		"ambassador/l4/healthcheck", // judges the answers of servers to probes
		"ambassador/l4/lookup",      // finds the addresses of an endpoint
		"ambassador/l4/nameserver",  // the resolver, and how long a lookup awaits both families
		"ambassador/l4/netconn",     // bounds, resets, kinds of errors
		"ambassador/l4/outcome",     // the reason of each attempt
		"ambassador/l4/preface",     // the PROXY header of connections without a client
		"ambassador/l4/relay",       // its sockets, and the leg of a connection
		"ambassador/l4/starttls",    // the server's part of a dialogue
		"ambassador/l4/task",        // leaves loops before it waits
		"ambassador/policy",         // balancing, breakers, health
		"ambassador/l4/tlscause",    // why TLS with a server failed
		"ambassador/l4/tlsrecord",   // the state of TLS with a server
	},
	"ambassador/l4/ending": {
		"ambassador/l4/netconn",  // kinds of errors
		"ambassador/l4/outcome",  // stages and reasons
		"ambassador/l4/preface",  // errors of what clients say first, and the replies of SOCKS5
		"ambassador/l4/relay",    // how a relay ended, and marks that cannot be set
		"ambassador/l4/starttls", // errors of dialogues, and what a server's first bytes look like
		"ambassador/l4/task",     // panics
		"ambassador/l4/tlscause", // alerts about certificates
		"ambassador/policy",      // what an attempt says about its address
	},
	"ambassador/l4/evicted":     {"ambassador/policy"},     // breakers
	"ambassador/l4/healthcheck": {"ambassador/l4/netconn"}, // kinds of errors
	"ambassador/l4/lookup": {
		"ambassador/l4/nameserver", // looks up names
	},
	"ambassador/l4/destination": {
		"ambassador/l4/nameserver", // looks up names
		"ambassador/l4/outcome",    // the reason why none may be dialled
	},
	"ambassador/l4/limits": {
		"ambassador/l4/task", // leaves loops before it waits
		"ambassador/policy",  // the source of a client
	},
	"ambassador/l4/bind": {
		"ambassador/l4/netconn", // the descriptors of sockets
		"ambassador/l4/relay",   // ports that two sockets share
	},
	"ambassador/l4/descriptors": {
		"ambassador/l4/bind",     // how many sockets an address has
		"ambassador/l4/upstream", // addresses that are probed and looked up
	},
	"ambassador/l4/handshake": {
		"ambassador/l4/limits",  // turns
		"ambassador/l4/netconn", // interrupts
		"ambassador/l4/preface", // the most bytes of a ClientHello
		"ambassador/l4/task",    // leaves the loop for what computes long
		"ambassador/policy",     // the source of a client
	},
	"ambassador/l4/request": {
		"ambassador/l4/ending",   // why a request is not served, and the reply for it
		"ambassador/l4/htpasswd", // logins that wait too long
		"ambassador/l4/netconn",  // timeouts
		"ambassador/l4/outcome",  // stages and reasons
		"ambassador/l4/preface",  // the protocols
		"ambassador/l4/relay",    // the error of a panic
	},
	"ambassador/l4/unixsocket": {"ambassador/l4/netconn"}, // descriptors
	"ambassador/l4/watch": {
		"ambassador/l4/relay", // sockets that bypass Go's poller
		"ambassador/l4/task",  // watches only a task that has left its loop
	},
	"ambassador/l4/peer": {
		"ambassador/l4/netconn", // descriptors, addresses
		"ambassador/l4/outcome", // the record
		"ambassador/policy",     // Source: the user of a unix socket's client
	},
	"ambassador/l4/l4test":   {"ambassador/l4/netconn"}, // the number of an alert
	"ambassador/l4/htpasswd": {"ambassador/policy"},     // Source: logins and limits count the same clients
	"ambassador/l4/preface":  {"ambassador/policy"},     // ParseHost: rules and clients spell host names alike
	"ambassador/l4/netconn": {
		"ambassador/l4/relay", // sockets that bypass Go's poller
		"ambassador/l4/task",  // bounds that know a task
	},
	"ambassador/l4/tlscause":   {"ambassador/l4/netconn"}, // alerts, kinds of errors
	"ambassador/l4/task":       {},
	"ambassador/l4/outcome":    {},
	"ambassador/l4/nameserver": {"ambassador/l4/task"}, // a session that waits for a name leaves its loop
	"ambassador/l4/relay": {
		"ambassador/l4/relay/ledger", // decides how a session ends
		"ambassador/l4/relay/load",   // decides how many loops are in use
		"ambassador/l4/tlsrecord",    // follows the records of TLS
	},
	"ambassador/l4/relay/ledger": {},
	"ambassador/l4/relay/load":   {},
	"ambassador/l4/tlsrecord":    {},
	"ambassador/l4/starttls":     {},
	"ambassador/certs":           {},
	"ambassador/certs/files": {
		"ambassador/certs", // sources of identities, and the reader of files
	},
	"ambassador/certs/step": {
		"ambassador/certs", // sources of identities, their renewal, and the folder that stores them
	},
	"ambassador/certs/spiffe": {
		"ambassador/certs", // sources of identities, and principals
	},
	"ambassador/certs/embedded": {
		"ambassador/certs", // the folder that stores the authority, and certificate requests
	},
	"ambassador/policy":              {},
	"ambassador/integration":         {},
	"ambassador/integration/bench":   {},
	"ambassador/integration/package": {},
	"ambassador/cmd/ambassador/internal/cmdtest": {
		"ambassador/l4/outcome",     // stages, reasons and records
		"ambassador/l4/upstream",    // states to show
		"ambassador/certs",          // states to show
		"ambassador/certs/embedded", // issues certificates
		"ambassador/certs/files",    // the pairs that it issues
		"ambassador/l4",             // records and states to show
	},
	"ambassador/cmd/ambassador/internal/output": {},
	"ambassador/cmd/ambassador/internal/report": {
		"ambassador/cmd/ambassador/internal/output", // writes rules and flags
		"ambassador/l4/outcome",                     // the records that it counts
		"ambassador/policy",                         // verdicts, special addresses, the syntax of hosts and ports
	},
	"ambassador/cmd/ambassador/internal/api": {
		"ambassador/l4/outcome",  // stages, reasons and records
		"ambassador/l4/upstream", // the status of upstreams
		"ambassador/l4",          // the server's records, statuses and reasons
	},
	"ambassador/cmd/ambassador/internal/adminsocket": {
		"ambassador/l4/bind",       // binds TCP sockets
		"ambassador/l4/unixsocket", // binds unix sockets, and checks whether a process listens on one
	},
	"ambassador/cmd/ambassador/internal/program": {
		"ambassador/certs", // reads a file named by a flag, with a size limit
	},
	"ambassador/cmd/ambassador/internal/handover": {
		"ambassador/cmd/ambassador/internal/program", // streams and environment
		"ambassador/l4/carry",                        // the state
	},
	"ambassador/cmd/ambassador/internal/config": {
		"ambassador/cmd/ambassador/internal/kubernetes", // the syntax of its references
		"ambassador/l4/unixsocket",                      // mode and owner of sockets
		"ambassador/l4/limits",                          // the limits of listeners
		"ambassador/l4/lookup",                          // the source of addresses that a Service is
		"ambassador/l4/upstream",                        // the types of its configuration, and its defaults
		"ambassador/certs",                              // principals, and the policies of upstreams and listeners
		"ambassador/certs/files",                        // the keys of files, and its Files
		"ambassador/certs/spiffe",                       // checks the agent's socket
		"ambassador/certs/step",                         // the keys of step, and its Config
		"ambassador/cmd/ambassador/internal/output",     // errors quote what a file contains
		"ambassador/cmd/ambassador/internal/program",    // the file may be a pipe
		"ambassador/l4",                                 // the types of its configuration, and its defaults
		"ambassador/l4/starttls",                        // the names of protocols, and what each can do
		"ambassador/policy",                             // the rules, and the syntax of their keys
		"ambassador/l4/htpasswd",                        // the users of users_file
	},
	"ambassador/cmd/ambassador/internal/kubernetes": {
		"ambassador/certs",       // the source that a Secret feeds, and the reader of token and roots
		"ambassador/certs/files", // the contents of a Secret are those of files
		"ambassador/l4/task",     // recovers from panics
		"ambassador/l4/lookup",   // the source of addresses that a Service is
		"ambassador/l4/upstream", // the part of it that a panic names
		"ambassador/policy",      // the pauses after failures
	},
	"ambassador/cmd/ambassador/internal/secrets": {
		"ambassador/cmd/ambassador/internal/kubernetes", // identities from a Secret
		"ambassador/certs",                          // sources of identities, and secrets in files
		"ambassador/certs/files",                    // identities and roots from files
		"ambassador/certs/spiffe",                   // identities from an agent
		"ambassador/certs/step",                     // identities from a CA
		"ambassador/cmd/ambassador/internal/api",    // the state of a users_file
		"ambassador/cmd/ambassador/internal/config", // the sections that it loads, and the position of their keys
		"ambassador/l4/htpasswd",                    // the users of users_file
	},
	"ambassador/cmd/ambassador/internal/logs": {
		"ambassador/l4/outcome",                     // stages, reasons and records
		"ambassador/policy",                         // the verdict would_deny
		"ambassador/cmd/ambassador/internal/output", // a log line contains no control characters
	},
	"ambassador/cmd/ambassador/internal/metrics": {
		"ambassador/l4/outcome",  // stages, reasons and records
		"ambassador/l4/upstream", // events and states of upstreams
		"ambassador/certs",       // the state of identities
		"ambassador/l4",          // events and states of the server
		"ambassador/policy",      // verdicts, and states of breakers and health
	},
	"ambassador/cmd/ambassador/internal/otlp": {
		"ambassador/certs",                        // Pause
		"ambassador/cmd/ambassador/internal/logs", // the level of a record
		"ambassador/l4/outcome",                   // records
	},
	"ambassador/cmd/ambassador/internal/admin": {
		"ambassador/l4/outcome",                          // stages, reasons and records
		"ambassador/l4/bind",                             // binds the socket of metrics
		"ambassador/l4/netconn",                          // sockets of the program before
		"ambassador/l4/unixsocket",                       // the file of the admin socket
		"ambassador/l4/peer",                             // who kills a session
		"ambassador/l4/upstream",                         // the status of upstreams
		"ambassador/certs",                               // the state of identities
		"ambassador/cmd/ambassador/internal/adminsocket", // binds the socket
		"ambassador/cmd/ambassador/internal/api",         // what it answers
		"ambassador/cmd/ambassador/internal/logs",        // which endings are failures
		"ambassador/cmd/ambassador/internal/output",      // writes answers
		"ambassador/cmd/ambassador/internal/report",      // what rules with report would deny
		"ambassador/cmd/ambassador/internal/page",        // the live page
		"ambassador/l4",                                  // states, sessions and reasons of the server
		"ambassador/policy",                              // health and breakers, for /readyz
	},
	"ambassador/cmd/ambassador/internal/page": {
		"ambassador/l4/upstream",                    // the status of upstreams, for display
		"ambassador/cmd/ambassador/internal/api",    // paths, and the status that it shows
		"ambassador/cmd/ambassador/internal/output", // durations and sizes for people
		"ambassador/l4/outcome",                     // records and reasons, for display
	},
	"ambassador/cmd/ambassador/internal/explain": {
		"ambassador/l4/outcome",                     // stages, reasons and records
		"ambassador/l4/bind",                        // whether a destination is one of our own sockets
		"ambassador/l4/destination",                 // what a client asks for
		"ambassador/l4/nameserver",                  // looks up names
		"ambassador/cmd/ambassador/internal/config", // the rules, and the clients that can match them
		"ambassador/cmd/ambassador/internal/output", // writes the explanation
		"ambassador/policy",                         // decides
	},
	"ambassador/cmd/ambassador/internal/keyhelp": {
		"ambassador/cmd/ambassador/internal/output", // prints
	},
	"ambassador/cmd/ambassador/internal/kubeinject": {},
	"ambassador/cmd/ambassador/internal/livetest": {
		"ambassador/certs", // the first certificate of an identity
		"ambassador/cmd/ambassador/internal/kubernetes", // the endpoints of Services
		"ambassador/cmd/ambassador/internal/config",     // the upstreams
		"ambassador/cmd/ambassador/internal/explain",    // what the rules decide about a destination
		"ambassador/cmd/ambassador/internal/output",     // prints results
		"ambassador/cmd/ambassador/internal/secrets",    // our certificates, and roots
		"ambassador/l4",             // the translated configuration
		"ambassador/l4/netconn",     // the dialer of sessions
		"ambassador/l4/outcome",     // stages, reasons, advice
		"ambassador/l4/destination", // what a client asks for
		"ambassador/l4/ending",      // the reason of a failed lookup
		"ambassador/l4/relay",       // its sockets
		"ambassador/l4/upstream",    // connects
		"ambassador/policy",         // what the rules decided
	},
	"ambassador/cmd/ambassador/internal/cli": {
		"ambassador/certs",                               // Pause
		"ambassador/l4/outcome",                          // stages, reasons and records
		"ambassador/l4/upstream",                         // the status of upstreams, for display
		"ambassador/cmd/ambassador/internal/admin",       // bounds the connections of page
		"ambassador/cmd/ambassador/internal/adminsocket", // finds the socket
		"ambassador/cmd/ambassador/internal/api",         // requests and responses
		"ambassador/cmd/ambassador/internal/logs",        // which endings are failures
		"ambassador/cmd/ambassador/internal/output",      // prints responses
		"ambassador/cmd/ambassador/internal/report",      // what rules with report would deny
		"ambassador/cmd/ambassador/internal/program",     // streams, environment, exit codes
		"ambassador/l4",                                  // records and reasons, for display
		"ambassador/policy",                              // states of breakers
	},
	"ambassador/cmd/ambassador/internal/process": {
		"ambassador/cmd/ambassador/internal/kubernetes",  // the API server
		"ambassador/l4/outcome",                          // stages, reasons and records
		"ambassador/certs",                               // panics of its parts
		"ambassador/certs/files",                         // the links to a file, for the sandbox
		"ambassador/cmd/ambassador/internal/admin",       // the admin API and its sockets
		"ambassador/cmd/ambassador/internal/adminsocket", // the folder of the socket, for the sandbox
		"ambassador/cmd/ambassador/internal/api",         // the state of sandbox and users
		"ambassador/cmd/ambassador/internal/config",      // what to run
		"ambassador/cmd/ambassador/internal/handover",    // replaces the program
		"ambassador/cmd/ambassador/internal/logs",        // the log
		"ambassador/l4/carry",                            // the state that the next program continues
		"ambassador/cmd/ambassador/internal/metrics",     // the metrics
		"ambassador/cmd/ambassador/internal/otlp",        // records for a collector
		"ambassador/cmd/ambassador/internal/output",      // prints
		"ambassador/cmd/ambassador/internal/page",        // the live page
		"ambassador/cmd/ambassador/internal/program",     // streams, environment, exit codes
		"ambassador/cmd/ambassador/internal/report",      // counts what rules with report allow
		"ambassador/cmd/ambassador/internal/secrets",     // loads what the configuration names
		"ambassador/l4/descriptors",                      // the bound of the admin API's connections
		"ambassador/l4",                                  // runs the server
	},
}

// wrapped lists every module that is neither ours nor the standard library, and the
// packages that may import it. Each has one package only, so that its types do not
// spread. There are exceptions: smallstep, whose client and authority are two
// packages of ours; golang.org/x/sys, which is the system itself; YAML, which is our
// configuration and manifests of Kubernetes; and modules that read a command line. A module that no package may import is a dependency of a library that
// we chose. Libraries that tests alone import, such as chromedp, are not in the list: an
// import outside a test is then an error.
var wrapped = map[string][]string{
	"github.com/smallstep/certificates": {"ambassador/certs/step", "ambassador/certs/embedded"},
	"go.step.sm/crypto":                 {"ambassador/certs/step", "ambassador/certs/embedded"},
	"github.com/spiffe/go-spiffe/v2":    {"ambassador/certs/spiffe"},
	"github.com/go-chi/chi/v5":          {"ambassador/certs/embedded"},
	"github.com/prometheus":             {"ambassador/cmd/ambassador/internal/metrics"},
	"github.com/spf13":                  {"ambassador/cmd/ambassador", "ambassador/cmd/ambassador/internal/cli"},
	"go.yaml.in/yaml/v4":                {"ambassador/cmd/ambassador/internal/config", "ambassador/cmd/ambassador/internal/kubeinject"},
	"github.com/coreos/go-systemd/v22":  {"ambassador/cmd/ambassador/internal/process"},
	"golang.org/x/term":                 {"ambassador/cmd/ambassador/internal/cli", "ambassador/cmd/ambassador/internal/logs"},
	"github.com/fsnotify/fsnotify":      {"ambassador/certs/files"},
	"github.com/landlock-lsm":           {"ambassador/cmd/ambassador/internal/process"},
	"software.sslmate.com/src":          {"ambassador/certs/files"},
	"golang.org/x/crypto":               {"ambassador/l4/tlsrecord", "ambassador/certs/files", "ambassador/l4/htpasswd", "ambassador/l4/preface", "ambassador/cmd/ambassador/internal/cmdtest"},
	"golang.org/x/net":                  {"ambassador/policy", "ambassador/l4/nameserver", "ambassador/l4/l4test"}, // its idna, with tables in x/text; DNS messages
	"golang.org/x/text":                 {},
	"github.com/pires/go-proxyproto":    {"ambassador/l4/preface"},
	"github.com/armon/go-socks5":        {"ambassador/l4/preface"},
	"golang.org/x/sys":                  {"ambassador/l4/watch", "ambassador/l4/netconn", "ambassador/l4/peer", "ambassador/l4/unixsocket", "ambassador/l4/l4test", "ambassador/l4/relay", "ambassador/cmd/ambassador/internal/process", "ambassador/cmd/ambassador/internal/handover", "ambassador/integration/bench"},
}

// forbidden lists imports that a package must not have directly, and why.
var forbidden = []struct{ pkg, path, reason string }{
	{"ambassador/policy", "net", "policy decides and does no I/O; net/netip has the addresses"},
	{"ambassador/policy", "os", "policy decides and does no I/O"},
	{"ambassador/policy", "context", "what needs a context waits, and policy never waits"},
	{"ambassador/policy", "crypto/tls", "policy decides and does no I/O"},
	{"ambassador/l4/htpasswd", "os", "cmd reads and watches the file"},
	{"ambassador/l4/htpasswd", "net", "connections are the session's"},
	{"ambassador/l4/preface", "os", "what a client says comes through a connection"},
	{"ambassador/l4/starttls", "net", "a dialogue is io.ReadWriter code, so that it can be fuzzed"},
	{"ambassador/l4/starttls", "crypto/tls", "a dialogue ends where TLS begins"},
	{"ambassador/l4/starttls", "context", "its bound is the connection's deadline, which the session sets"},
	{"ambassador/l4/outcome", "net", "it has the words; l4 looks inside errors"},
	{"ambassador/l4/relay", "net/http", "the relay moves bytes; requests are read before it begins"},
	{"ambassador/cmd/ambassador/internal/output", "net", "output is given texts and values"},
	{"ambassador/cmd/ambassador/internal/output", "os", "output is given texts and values"},
	{"ambassador/cmd/ambassador/internal/api", "net/http", "the API's types serve nothing and ask nothing"},
	{"ambassador/cmd/ambassador/internal/cli", "os/signal", "a command ends with its context"},
	{"ambassador/cmd/ambassador/internal/admin", "os/signal", "the admin API sets going what it is given"},
	{"ambassador/cmd/ambassador/internal/config", "net/http", "the configuration contacts nobody; the process asks the question of health.http"},
	{"ambassador/cmd/ambassador/internal/config", "log/slog", "the configuration returns its mistakes and warnings; others log them"},
	{"ambassador/cmd/ambassador/internal/config", "sync", "a configuration does not change once it is in use"},
	{"ambassador/cmd/ambassador/internal/kubeinject", "net", "it edits text and contacts no cluster"},
	{"ambassador/cmd/ambassador/internal/kubeinject", "os", "the command reads and writes"},
	{"ambassador/certs", "net/http", "certs holds identities; fetching them is certs/step's"},
}

// banned lists imports that no package of ours may have, and why.
var banned = map[string]string{
	"log":            "log/slog is passed in",
	"math/rand":      "math/rand/v2",
	"io/ioutil":      "deprecated",
	"net/http/pprof": "it registers itself with the default mux",
	"expvar":         "it registers itself with the default mux",
	"mime":           "TypeByExtension reads a file of the host, of some hundred kB",
}

// listed has the fields of `go list -json` that the tests use.
type listed struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Deps       []string
}

// list returns our packages and all that they import, as built for the system goos. It
// leaves out test files.
func list(t *testing.T, goos string) map[string]listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard,Imports,Deps", "ambassador/...")
	cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	packages := map[string]listed{}
	for dec := json.NewDecoder(strings.NewReader(string(text))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages[p.ImportPath] = p
	}
}

// TestPackagesAreSmall asserts that a reader can know a package as a whole.
func TestPackagesAreSmall(t *testing.T) {
	lines := map[string]int{}
	for _, name := range sources(t) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines[path.Dir(filepath.ToSlash(name))] += strings.Count(string(text), "\n")
	}
	for dir, n := range lines {
		most := 4500
		if dir == "../../l4" {
			most = 4000
		}
		if n > most {
			t.Errorf("%s has %d lines, and %d are the most: give a part of it a package of its own", dir, n, most)
		}
	}
	if lines["../../l4"] == 0 {
		t.Error("no line of l4 was counted")
	}
}

func isOurs(path string) bool { return strings.HasPrefix(path, "ambassador/") }

// TestDependencies asserts that imports go in one direction, and that each library is
// imported in one place.
func TestDependencies(t *testing.T) {
	for _, goos := range []string{"linux", "darwin"} {
		t.Run(goos, func(t *testing.T) {
			t.Parallel()
			packages := list(t, goos)
			for name, p := range packages {
				if isOurs(name) {
					checkImports(t, p, packages)
				}
			}
		})
	}
}

func checkImports(t *testing.T, p listed, packages map[string]listed) {
	t.Helper()
	allowed, known := ours[p.ImportPath]
	if !known {
		t.Errorf("%s is not in the list of our packages", p.ImportPath)
	}
	for _, path := range p.Imports {
		switch {
		case banned[path] != "":
			t.Errorf("%s imports %s: %s", p.ImportPath, path, banned[path])
		case isOurs(path) && !slices.Contains(allowed, path):
			t.Errorf("%s imports %s: imports point cmd → its internal packages → l4, certs, policy; l4 → policy and what is below l4; certs/* → certs", p.ImportPath, path)
		case !isOurs(path) && !packages[path].Standard && !slices.Contains(wrapped[module(path)], p.ImportPath):
			t.Errorf("%s imports %s: allowed in %q; a library is wrapped in one package", p.ImportPath, path, wrapped[module(path)])
		}
	}
	for _, f := range forbidden {
		if f.pkg == p.ImportPath && slices.Contains(p.Imports, f.path) {
			t.Errorf("%s imports %s: %s", f.pkg, f.path, f.reason)
		}
	}
}

// module is the key of wrapped that contains a package's path.
func module(pkg string) string {
	for pkg != "." && pkg != "/" {
		if wrapped[pkg] != nil {
			return pkg
		}
		pkg = path.Dir(pkg)
	}
	return ""
}

// heavy lists the packages that come with the embedded CA, the clients of step-ca and
// SPIFFE, or the metrics format.
var heavy = []string{"ambassador/certs/embedded", "ambassador/certs/step", "ambassador/certs/spiffe", "ambassador/cmd/ambassador",
	"ambassador/cmd/ambassador/internal/cmdtest", "ambassador/cmd/ambassador/internal/config",
	"ambassador/cmd/ambassador/internal/secrets", "ambassador/cmd/ambassador/internal/metrics",
	"ambassador/cmd/ambassador/internal/explain", "ambassador/cmd/ambassador/internal/livetest", "ambassador/cmd/ambassador/internal/process"}

// TestHeavyDependencies asserts which packages depend on the embedded CA. It brings 474
// packages, which only certs/embedded and certs/step may import. Only certs/spiffe may
// import gRPC.
func TestHeavyDependencies(t *testing.T) {
	packages := list(t, "linux")
	for name, p := range packages {
		if !isOurs(name) || slices.Contains(heavy, name) {
			continue
		}
		for _, dep := range p.Deps {
			if d := packages[dep]; !d.Standard && !isOurs(dep) && module(dep) == "" {
				t.Errorf("%s depends on %s, which is none of the libraries we chose", name, dep)
			}
		}
	}
}

// TestRulesAreAlive asserts that everything in the lists above exists, so that no rule
// outlives its subject.
func TestRulesAreAlive(t *testing.T) {
	packages := list(t, "linux")
	used := map[string]bool{}
	for name, p := range packages {
		for _, path := range p.Imports {
			if isOurs(name) || len(wrapped[module(path)]) == 0 {
				used[module(path)] = true
			}
		}
	}
	for name := range ours {
		if _, ok := packages[name]; !ok {
			t.Errorf("%s is in the list of our packages and does not exist", name)
		}
	}
	for name := range wrapped {
		if !used[name] {
			t.Errorf("%s is in the list of libraries and nobody imports it", name)
		}
	}
}

// TestArrowsHaveReasons asserts that each import listed in ours is there, on linux or on
// darwin, and has its reason in a comment on its line.
func TestArrowsHaveReasons(t *testing.T) {
	linux, darwin := list(t, "linux"), list(t, "darwin")
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "deps_test.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range arrows(file) {
		from, _ := strconv.Unquote(e.Key.(*ast.BasicLit).Value)
		for _, to := range e.Value.(*ast.CompositeLit).Elts {
			at := fset.Position(to.Pos())
			path, _ := strconv.Unquote(to.(*ast.BasicLit).Value)
			if !slices.Contains(linux[from].Imports, path) && !slices.Contains(darwin[from].Imports, path) {
				t.Errorf("%s: %s does not import %s; remove the line", at, from, path)
			}
			if !hasReason(fset, file, at.Line) {
				t.Errorf("%s: the import of %s by %s has no reason; write it as a comment on a line of its own", at, path, from)
			}
		}
	}
}

// arrows returns the entries of ours.
func arrows(file *ast.File) (out []*ast.KeyValueExpr) {
	spec := file.Scope.Lookup("ours").Decl.(*ast.ValueSpec)
	for _, e := range spec.Values[0].(*ast.CompositeLit).Elts {
		out = append(out, e.(*ast.KeyValueExpr))
	}
	return out
}

// hasReason reports whether a comment of more than one letter begins on the line.
func hasReason(fset *token.FileSet, file *ast.File, line int) bool {
	return slices.ContainsFunc(file.Comments, func(c *ast.CommentGroup) bool {
		return fset.Position(c.Pos()).Line == line && len(strings.TrimSpace(c.Text())) > 1
	})
}

// fixed lists, for each module, the lowest version without a known vulnerability that
// our code reaches. It detects a downgrade where the vulnerability database is not
// available; `.ci/run` queries the database where it is.
var fixed = []struct{ module, version, reason string }{
	{"github.com/go-jose/go-jose/v3", "v3.0.5", "CVE-2026-34986: a JWE with an empty key, which a CA sends us as a provisioner's key, panics the process"},
	{"github.com/go-jose/go-jose/v4", "v4.1.4", "CVE-2026-34986: the same panic"},
	{"google.golang.org/grpc", "v1.82.1", "a flood of HTTP/2 frames is read without bound"},
	{"github.com/jackc/pgx/v5", "v5.9.2", "CVE-2026-33816 and CVE-2026-41889: memory safety, and SQL injection by dollar quotes"},
	{"go.opentelemetry.io/otel", "v1.47.0", "CVE-2026-29181 and CVE-2026-128086: a baggage header costs far more than its size"},
}

// TestFixedVersions asserts that no module of the build is older than its version in
// fixed.
func TestFixedVersions(t *testing.T) {
	for _, f := range fixed {
		text, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", f.module).Output()
		if err != nil {
			t.Errorf("go list -m %s: %v; remove its line here if the module is gone", f.module, err)
			continue
		}
		if got := strings.TrimSpace(string(text)); olderVersion(got, f.version) {
			t.Errorf("%s %s is vulnerable, %s is not: %s", f.module, got, f.version, f.reason)
		}
	}
}

// olderVersion compares versions by their numbers. A version with a hyphen is older
// than the same version without (v1.2.3-rc.1, pseudo-versions).
func olderVersion(a, b string) bool {
	parse := func(v string) (numbers [3]int, pre bool) {
		v, _, pre = strings.Cut(strings.TrimSuffix(v, "+incompatible"), "-")
		fmt.Sscanf(v, "v%d.%d.%d", &numbers[0], &numbers[1], &numbers[2])
		return numbers, pre
	}
	numbersA, preA := parse(a)
	numbersB, preB := parse(b)
	if c := slices.Compare(numbersA[:], numbersB[:]); c != 0 {
		return c < 0
	}
	return preA && !preB
}

func TestOlderVersion(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"v1.82.1", "v1.82.1", false},
		{"v1.79.3", "v1.82.1", true},
		{"v1.100.0", "v1.82.1", false},
		{"v3.0.10", "v3.0.5", false},
		{"v1.82.1-rc.1", "v1.82.1", true},
		{"v1.82.2-0.20260101000000-abcdefabcdef", "v1.82.1", false},
	} {
		if got := olderVersion(test.a, test.b); got != test.want {
			t.Errorf("olderVersion(%s, %s) = %v, want %v", test.a, test.b, got, test.want)
		}
	}
}

// sources lists the Go files of the repository except tests, as paths relative to this
// folder.
func sources(t *testing.T) (out []string) {
	t.Helper()
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestNoMultipathTCP asserts that no socket of ours is MPTCP, since Landlock's port
// rules are for TCP alone. Go's listeners are MPTCP by default, and its dialers if
// GODEBUG says so. A function that makes a dialer or a listener must call
// SetMultipathTCP(false), or use unix sockets only.
func TestNoMultipathTCP(t *testing.T) {
	files := sources(t)
	for _, name := range files {
		if strings.Contains(name, "/integration/") || strings.Contains(name, "/cmdtest/") || strings.Contains(name, "/l4test/") {
			continue // tests dial like clients
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok {
				if what := multipath(f); what != "" {
					t.Errorf("%s: %s: %s may be MPTCP; call SetMultipathTCP(false)", fset.Position(f.Pos()), f.Name.Name, what)
				}
			}
		}
	}
}

// multipath returns the call in f that may make an MPTCP socket; empty if there is
// none.
func multipath(f *ast.FuncDecl) (what string) {
	makers := []string{"net.Dialer", "net.ListenConfig", "net.Dial", "net.DialTimeout", "net.Listen", "tls.Dialer", "tls.Dial", "tls.Listen",
		"http.DefaultTransport", "http.DefaultClient", "http.Get", "http.Post", "http.ListenAndServe"}
	exempt := false
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			exempt = exempt || n.Sel.Name == "SetMultipathTCP"
			if name := qualified(n); slices.Contains(makers, name) {
				what = name
			}
		case *ast.BasicLit:
			exempt = exempt || n.Value == `"unix"`
		case *ast.CompositeLit:
			switch name := qualified(n.Type); {
			case name == "http.Transport" && !hasKey(n, "DialContext"), name == "http.Client" && !hasKey(n, "Transport"):
				what = name
			}
		}
		return true
	})
	if exempt {
		return ""
	}
	return what
}

// qualified returns a name like "net.Dialer"; empty if the expression is not a
// qualified name.
func qualified(e ast.Expr) string {
	if sel, ok := e.(*ast.SelectorExpr); ok {
		if pkg, ok := sel.X.(*ast.Ident); ok {
			return pkg.Name + "." + sel.Sel.Name
		}
	}
	return ""
}

func hasKey(lit *ast.CompositeLit, name string) bool {
	return slices.ContainsFunc(lit.Elts, func(e ast.Expr) bool {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok {
			return false
		}
		key, ok := kv.Key.(*ast.Ident)
		return ok && key.Name == name
	})
}

// TestFilesHaveOneReader asserts that all files are read with certs.ReadFile or
// certs.Folder. They never block and limit the size.
func TestFilesHaveOneReader(t *testing.T) {
	opens := map[string]string{ // the functions that may open files themselves, and why
		"certs/readfile.go":                                  "the reader",
		"integration/bench/cpu_linux.go":                     "/proc; the bench is no part of the product",
		"integration/bench/program.go":                       "the logs of programs under test",
		"integration/package/modules.go":                     "the source; packing is no part of the product",
		"integration/package/release.go":                     "the Dockerfile",
		"integration/package/stage.go":                       "what it has made",
		"integration/imagebuild/source.go":                   "builds the image; a module of its own",
		"cmd/ambassador/internal/program/given.go":           "pipes that a command line names",
		"cmd/ambassador/internal/adminsocket/adminsocket.go": "locks a folder",
		"l4/peer/process_linux.go":                           "/proc/PID/comm",
		"l4/nameserver/system.go":                            "/etc/resolv.conf, which net's resolver reads in the same way",
	}
	for _, path := range sources(t) {
		rel, _ := filepath.Rel("../..", path)
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		found := ""
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := call.X.(*ast.Ident); ok && pkg.Name == "os" && slices.Contains([]string{"ReadFile", "Open", "OpenFile"}, call.Sel.Name) {
				found = call.Sel.Name
			}
			return true
		})
		if why := opens[rel]; (found != "") != (why != "") {
			t.Errorf("%s calls os.%s; it is listed here %q: read files by certs.ReadFile", rel, found, why)
		}
	}
}
