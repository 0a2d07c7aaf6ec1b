package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"ambassador/certs"
	"ambassador/certs/files"
	"ambassador/certs/spiffe"
	"ambassador/certs/step"
	"ambassador/cmd/ambassador/internal/kubernetes"
	"ambassador/l4"
	"ambassador/l4/limits"
	"ambassador/l4/starttls"
	"ambassador/l4/upstream"
)

// File is a configuration, decoded, with its defaults and absolute paths. It is
// not changed once it is in use.
type File struct {
	Admin      AdminSection
	Metrics    MetricsSection
	Log        LogSection
	Tracing    TracingSection
	Drain      DrainSection
	Limits     LimitsSection
	DNS        DNSSection
	Sandbox    SandboxSection
	Identities []*IdentitySection // in the file's order, like all lists here
	Upstreams  []*UpstreamSection
	Listeners  []*ListenerSection

	printed []byte // the text it was read from, but for secrets
	text    []byte // the same with secrets
	places  *decoder
	// Of Identities and Upstreams, by name: a file may have thousands of each.
	identityOf map[string]*IdentitySection
	upstreamOf map[string]*UpstreamSection
}

// AdminSection is admin: Off where listen is "", the default socket where it is
// not given.
type AdminSection struct {
	Listen            string
	Off               bool
	Socket            SocketSection // of a unix socket
	Hosts             []string
	TokenFile         string
	TokenFor          string
	UnsafeAdminListen bool
}

// The values of admin.token_for.
const (
	tokenForChanges = "changes"
	TokenForAll     = "all"
)

// MetricsSection is metrics.
type MetricsSection struct{ Listen string }

// LogSection is log; an empty Format is the one that suits the place.
type LogSection struct{ Level, Format string }

// DrainSection is drain.
type DrainSection struct{ Delay, Timeout time.Duration }

// LimitsSection is limits.
type LimitsSection struct {
	Connections int
	Memory      int64 // bytes
}

// DNSSection is dns.
type DNSSection struct{ Servers []string }

// IdentitySection is one of identities: from files, or from one of the others.
type IdentitySection struct {
	Name   string
	Files  files.Files
	Step   *step.Config // nil: not from a step-ca
	SPIFFE string       // the agent's socket; empty: not from an agent
	// Kubernetes is "namespace/secret"; empty: not from a Secret.
	Kubernetes string
}

// UpstreamSection is one of upstreams.
type UpstreamSection struct {
	Name            string
	Endpoints       []EndpointSection
	SRV             string
	Balance         string
	Resolve         ResolveSection
	StartTLS        string
	StartTLSOptions StartTLSSection // starttls_options
	TLS             *TLSSection     // nil: plaintext
	ProxyProtocol   string
	Connect         ConnectSection
	Breaker         BreakerSection
	Health          HealthSection
	Preconnect      PreconnectSection
	MaxConnections  int
	Dynamic         bool
	Mark            int
	Required        bool
}

// TLSSection is an upstream's tls.
type TLSSection struct {
	Identity, CA, ServerName string
	Principals, ALPN         []string
	UnsafeSkipVerify         bool
	TLSChoiceSection
}

// ConnectSection is an upstream's connect.
type ConnectSection struct {
	Timeout, AttemptTimeout, Backoff time.Duration
	Attempts                         int
}

// ListenerSection is one of listeners.
type ListenerSection struct {
	Name                  string
	Listen                []string
	Socket                SocketSection
	UnsafePlaintextListen bool
	ProxyFrom             []string            // of proxy_protocol; empty: no headers are sent
	ProxyOptional         bool                // of proxy_protocol
	LogSessions           string              // log.sessions
	LogProcess            bool                // log.process
	TLS                   *ListenerTLSSection // nil: plaintext
	StartTLS              string
	SOCKS5, HTTPConnect   *RequestSection // nil: clients do not speak it
	OriginalDestination   bool
	SNI, Context          bool
	Upstream              string
	Rules                 []RuleSection
	Timeouts              TimeoutsSection
	Limits                limits.Limits
}

// SocketSection is a listener's socket.
type SocketSection struct{ Mode, Owner string }

// TimeoutsSection is a listener's timeouts.
type TimeoutsSection struct{ Handshake, Idle, HalfCloseIdle, Lifetime time.Duration }

// fields is the whole file: the decoder and the schema both follow it.
func (f *File) fields() []field {
	return []field{
		sectionField("admin", "The admin API, which the commands status, why, reload and others speak to.", f.Admin.fields()),
		sectionField("metrics", "A listener for /livez, /readyz and /metrics alone.", []field{
			textField("listen", "HOST:PORT; may be any address. Default: off, the admin API serves them too.", &f.Metrics.Listen, CheckHostPort)}),
		sectionField("log", "The log, on standard error.", []field{
			enumField("level", "", &f.Log.Level, "debug", "info", "warn", "error").or("info"),
			enumField("format", "auto: lines for people on a terminal, else json; text: key=value; json: one object a line.", &f.Log.Format, "auto", "text", "json").or("auto")}),
		sectionField("tracing", "OpenTelemetry.", f.Tracing.fields()),
		sectionField("drain", "How SIGTERM, SIGINT and drain end sessions.", []field{
			durationField("delay", "How long connections are still accepted, while /readyz already says 503.", &f.Drain.Delay, 0).or(0 * time.Second),
			durationField("timeout", "How long sessions then have: idle ones are ended in its course, busy ones may finish, the rest is reset.", &f.Drain.Timeout, 0).or(25 * time.Second)}),
		sectionField("limits", "Limits of the whole process.", []field{
			intField("connections", "The most sessions at a time.", &f.Limits.Connections, 0, 1<<30).or(0, ": 45 % of the descriptor limit, or less where listeners, probes, files, admin and metrics need more of it"),
			sizeField("memory", "The most bytes held for sessions that are not connected to an upstream yet, and for slow readers; beyond it the largest or oldest of them end.", &f.Limits.Memory, 1<<20, 1<<40).or(int64(l4.DefaultMemory))}),
		sectionField("dns", "How names are looked up.", []field{
			listField("servers", "Servers that are asked, HOST or HOST:PORT, IP addresses. Default: the system's. /etc/hosts and search domains count either way.", &f.DNS.Servers, checkDNSServer)}),
		sectionField("sandbox", "What the process can do, whatever an attacker makes it do.", f.Sandbox.fields()),
		namedField("identities", "Certificates that we show, by a name of your choice.", func(name string) []field {
			id := &IdentitySection{Name: name}
			if name != "" { // empty: only the schema asks
				f.Identities = append(f.Identities, id)
				f.identityOf[name] = id
			}
			return id.fields()
		}),
		namedField("upstreams", "Remote services, by a name of your choice.", func(name string) []field {
			u := &UpstreamSection{Name: name}
			if name != "" { // empty: only the schema asks
				f.Upstreams = append(f.Upstreams, u)
				f.upstreamOf[name] = u
			}
			return u.fields()
		}),
		namedField("listeners", "Where the application connects, by a name of your choice.", func(name string) []field {
			l := &ListenerSection{Name: name}
			if name != "" { // empty: only the schema asks
				f.Listeners = append(f.Listeners, l)
			}
			return l.fields()
		}),
	}
}

func (a *AdminSection) fields() []field {
	listen := textField("listen", `unix:/path or HOST:PORT; "" turns it off. Default: a socket of its own in $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/ambassador or the temporary folder.`, &a.Listen, nil)
	decode := listen.decode
	listen.decode = func(d *decoder, n *yaml.Node, path string) {
		decode(d, n, path)
		a.Off = a.Listen == ""
		if err := checkAdminListen(a.Listen); err != nil && !a.Off {
			d.fail(n, path, "%v", err)
		}
	}
	return []field{
		listen,
		textField("mode", "The permissions of the unix socket, in octal. Who may write to it may do everything that the admin API can.", &a.Socket.Mode, checkMode).or("0600"),
		textField("owner", "The owner of the unix socket: USER or USER:GROUP, names or numbers. Default: ours.", &a.Socket.Owner, checkOwner),
		listField("hosts", "Names that requests over TCP may use for us, besides IP addresses and localhost.", &a.Hosts, nil),
		textField("token_file", "File with the token that every change over TCP needs.", &a.TokenFile, nil),
		enumField("token_for", "What needs the token over TCP: changes, or all, which leaves out only /livez and /readyz without parameters.", &a.TokenFor, tokenForChanges, TokenForAll).or(tokenForChanges),
		boolField("unsafe_admin_listen", "Allows TCP beyond loopback.", &a.UnsafeAdminListen),
	}
}

func (id *IdentitySection) fields() []field {
	return []field{sectionField("files", "Files with a certificate and its key. They are watched: a new pair is used by the next connection; a bad one keeps the old.", []field{
		textField("cert", "The certificate chain, leaf first, in PEM or DER. Without cert and pkcs12 the identity shows no certificate: ca and crl only verify the other side.", &id.Files.Cert, nil),
		textField("key", "Its private key in PEM or DER.", &id.Files.Key, nil),
		textField("pkcs12", "A PKCS #12 file, instead of cert and key. Self-signed certificates in it are the roots where ca is not given.", &id.Files.PKCS12, nil),
		textField("ca", "Roots that verify the other side, where tls.ca gives none: in PEM, in DER, or as PKCS #12. A certificate that cannot be a root is left out with a warning.", &id.Files.CA, nil),
		textField("crl", "Lists of revoked certificates, in PEM or DER. Every CA that issues certificates of peers needs one; of several the newest counts. If none can be used, because it expired, say, or has another scope, nothing of that CA is accepted.", &id.Files.CRL, nil),
		textField("password_file", "File with the password of an encrypted key (PKCS #8), of pkcs12, and of a ca in PKCS #12, and nothing else.", &id.Files.PasswordFile, nil)}),
		id.stepField(),
		sectionField("spiffe", "From the agent of the SPIFFE Workload API (SPIRE) on this host.", []field{
			textField("socket", "The agent's socket: unix:///path.", &id.SPIFFE, spiffe.CheckSocket)}),
		textField("kubernetes", "From a Kubernetes Secret, namespace/secret, with tls.crt, tls.key and, for roots, ca.crt, as cert-manager makes it; ca.crl may have revocation lists. It is watched: a new pair is used by the next connection; a bad one keeps the old.",
			&id.Kubernetes, kubernetes.CheckSecret)}
}

func (id *IdentitySection) stepField() field {
	c := &step.Config{}
	section := sectionField("step", "From a step-ca, or from `ambassador ca`: enrolled, renewed and rekeyed without a person.", []field{
		textField("url", "The CA: https://HOST:PORT.", &c.URL, step.ParseURL),
		textField("fingerprint", "SHA-256 of the CA's root certificate, in hexadecimal.", &c.Fingerprint, func(s string) error {
			_, err := step.ParseFingerprint(s)
			return err
		}),
		textField("provisioner", "A JWK provisioner that keeps its key at the CA; with password_file.", &c.Provisioner, nil),
		textField("password_file", "File with the provisioner's password, and nothing else.", &c.PasswordFile, nil),
		textField("token_file", "File with a one-time token, instead of provisioner and password_file; read anew for each enrolment. Needs storage.", &c.TokenFile, nil),
		listField("names", "What the certificate is for: DNS names, IP addresses, URIs (spiffe://…), e-mail addresses. The first is its CN, too.", &c.Names, step.ParseName),
		durationField("lifetime", "How long certificates are to be valid. Default: the provisioner's. A renewal keeps that of the enrolment.", &c.Lifetime, time.Second),
		textField("storage", "Folder that keeps certificate, key (mode 0600) and roots, so that a restart needs neither CA nor token. It must be ours, and writable by us alone; it is made with mode 0700. Processes may share it. Default: in memory.", &c.Storage, nil)})
	decode := section.decode
	section.decode = func(d *decoder, n *yaml.Node, path string) {
		id.Step = c
		decode(d, n, path)
	}
	return section
}

func (u *UpstreamSection) fields() []field {
	u.TLS = &TLSSection{}
	tls := sectionField("tls", "Speak TLS to it; {} is valid. Without this key the connection is plaintext.", u.TLS.fields())
	section := u.TLS
	u.TLS = nil
	decode := tls.decode
	tls.decode = func(d *decoder, n *yaml.Node, path string) {
		u.TLS = section
		decode(d, n, path)
	}
	return append([]field{
		u.endpointsField(),
		boolField("dynamic", "Instead of endpoints: dials what the client asked for, through socks5, http_connect or original_destination of its listener.", &u.Dynamic).or(false),
		startTLSField(&u.StartTLS),
		sectionField("starttls_options", "How starttls is spoken.", u.StartTLSOptions.fields()),
		tls,
		enumField("proxy_protocol", "The PROXY header that connections begin with, before starttls and tls; v2 tells of the client's TLS, too.", &u.ProxyProtocol, "none", "v1", "v2").or("none"),
		sectionField("connect", "Bounds of establishing a connection.", []field{
			durationField("timeout", "All attempts together.", &u.Connect.Timeout, time.Millisecond).or(upstream.DefaultConnectTimeout),
			durationField("attempt_timeout", fmt.Sprintf("One attempt: dial, STARTTLS and TLS to one address. Default %s while there is another address to try, else what is left of timeout.", upstream.DefaultAttemptTimeout), &u.Connect.AttemptTimeout, time.Millisecond),
			intField("attempts", "How often one session tries, each time another address first. More addresses than that are each tried once, too, while timeout lasts.", &u.Connect.Attempts, 1, 100).or(upstream.DefaultAttempts),
			durationField("backoff", "The pause before an address is tried again; it grows and has jitter.", &u.Connect.Backoff, time.Millisecond).or(upstream.DefaultBackoff)}),
		markField(&u.Mark),
		boolField("required", "Counts for readiness, and is tried at start until reached.", &u.Required).or(true, "; a dynamic upstream is never required"),
	}, u.resilienceFields()...)
}

func (t *TLSSection) fields() []field {
	return append([]field{
		textField("identity", "The certificate that we show: one of identities. Default: none.", &t.Identity, nil),
		textField("ca", "File of the roots that verify the server, which is watched, or system. Default: the identity's ca, else the system's.", &t.CA, nil),
		textField("server_name", "The name sent, and, without principals, the one that the server's certificate must be for: a name without a port, or an IP address. Default: the endpoint's host.", &t.ServerName, checkServerName),
		listField("principals", "One of these the server must prove, instead of server_name: dns:NAME, ip:ADDRESS, spiffe://domain/path, spki:sha256/BASE64 (instead of a chain), any (chain only).", &t.Principals, checkPrincipal),
		listField("alpn", "Protocols offered by ALPN. A server that selects none is accepted.", &t.ALPN, nil),
		boolField("unsafe_skip_verify", "Accepts any server.", &t.UnsafeSkipVerify),
	}, t.TLSChoiceSection.fields()...)
}

func (l *ListenerSection) fields() []field {
	return []field{
		l.listenField(),
		sectionField("socket", "The file of a unix socket.", []field{
			textField("mode", `Its permissions, in octal.`, &l.Socket.Mode, checkMode).or("0600"),
			textField("owner", "Its owner: USER or USER:GROUP, names or numbers. Default: ours.", &l.Socket.Owner, checkOwner)}),
		boolField("unsafe_plaintext_listen", "Allows plaintext on an address that others can reach.", &l.UnsafePlaintextListen),
		l.proxyField(),
		l.tlsField(),
		enumField("starttls", "The protocol in which clients ask us for TLS before it begins.", &l.StartTLS, append([]string{"none"}, starttls.AcceptNames()...)...).or("none", ": TLS begins at once"),
		requestField("socks5", "Clients ask in SOCKS5 (RFC 1928) where they want to go; {} is valid.", &l.SOCKS5),
		requestField("http_connect", "Clients ask by HTTP CONNECT where they want to go; {} is valid.", &l.HTTPConnect),
		boolField("original_destination", "Connections were redirected to us (Linux, nftables REDIRECT), and want to go where they went before.", &l.OriginalDestination).or(false),
		boolField("sni", "Reads the name in the client's TLS ClientHello, for rules, without ending its TLS.", &l.SNI).or(false),
		boolField("context", "Clients may say attempts, timeout, no_preconnect, traceparent and tag of their own connection: as a suffix of the SOCKS5 user name, in the header Ambassador-Context, or in PROXY v2.", &l.Context).or(false),
		textField("upstream", "Where its sessions go: one of upstreams. Give this or rules.", &l.Upstream, nil),
		l.rulesField(),
		sectionField("timeouts", "Bounds of its sessions; 0s is none.", []field{
			durationField("handshake", "How long we wait for the client: for its PROXY header, its TLS handshake or ClientHello, its SOCKS5 or CONNECT request, and for its part of a starttls dialogue.", &l.Timeouts.Handshake, time.Millisecond).or(l4.DefaultHandshakeTimeout),
			durationField("idle", "Ends a session that moved no byte either way for so long.", &l.Timeouts.Idle, 0).or(0 * time.Second),
			durationField("half_close_idle", "The same once one side has ended.", &l.Timeouts.HalfCloseIdle, 0).or(0 * time.Second),
			durationField("lifetime", "Bounds a session as a whole.", &l.Timeouts.Lifetime, 0).or(0 * time.Second)}),
		l.limitsField(),
		sectionField("log", "What of its sessions is logged. Metrics and `ambassador why` have all of them.", []field{
			enumField("sessions", "all; no_probes, all but the connections that end without a byte, as checks of balancers do; failures, what is logged as a warning or an error; none.", &l.LogSessions, LogAll, LogNoProbes, LogFailures, LogNone).or(LogAll),
			boolField("process", "Records have the uid, pid and process name of clients on this host. Of clients on unix sockets they always have uid and pid; finding the process of a TCP client costs time (Linux, and for the pid sandbox.landlock: off).", &l.LogProcess).or(false)}),
	}
}

// The values of a listener's log.sessions.
const (
	LogAll      = "all"
	LogNoProbes = "no_probes"
	LogFailures = "failures"
	LogNone     = "none"
)

// Load reads a configuration. The error is a *Error with every mistake in its
// text; beside it the File has what could be read, and is nil where nothing could.
func (s *Source) Load(env func(string) (string, bool)) (*File, error) {
	source, err := s.read()
	if err != nil {
		var p *fs.PathError
		if errors.As(err, &p) {
			err = p.Err
		}
		return nil, &Error{[]Problem{{File: s.Path, Text: err.Error()}}}
	}
	folder, err := s.folder()
	if err != nil {
		return nil, err
	}
	return Parse(s.Path, folder, source, env)
}

// Parse decodes a configuration whose relative paths start at folder. Beside
// a *Error the File has what could be read.
func Parse(name, folder string, source []byte, env func(string) (string, bool)) (*File, error) {
	return (&decoder{file: name, env: env}).decodeFile(folder, certs.Text(source))
}

func (d *decoder) decodeFile(folder string, source []byte) (*File, error) {
	d.at = map[string]*yaml.Node{}
	f := &File{places: d, identityOf: map[string]*IdentitySection{}, upstreamOf: map[string]*UpstreamSection{}}
	if root := d.parseYAML(source); root != nil {
		d.section(root, "", f.fields())
		f.startPathsAt(folder)
		f.completeDynamic()
		f.validate(d)
		f.printed, f.text = d.withoutSecrets(source), source
	}
	if !d.full() {
		return f, ErrorOf(d.problems)
	}
	err := &Error{d.problems}
	err.sort()
	end := err.Problems[maxProblems-1]
	end.Path, end.Text = "", fmt.Sprintf("there may be more than these %d mistakes; fix them first", maxProblems)
	err.Problems = append(err.Problems, end)
	return f, err
}

// startPathsAt makes every path absolute.
func (f *File) startPathsAt(folder string) {
	for _, path := range f.Paths() {
		if *path != "" {
			*path = pathIn(folder, *path)
		}
	}
	for _, address := range f.Addresses() {
		*address = addressIn(folder, *address)
	}
}

func pathIn(folder, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(folder, path)
}

// addressIn makes the path of "unix:/path" absolute, and leaves other addresses, among
// them abstract sockets, as they are.
func addressIn(folder, address string) string {
	if path, ok := strings.CutPrefix(address, "unix:"); ok && path != "" && path[0] != '@' {
		return "unix:" + pathIn(folder, path)
	}
	return address
}

// Addresses are all that may be on unix sockets, whose paths are relative to the
// file.
func (f *File) Addresses() []*string {
	all := []*string{&f.Admin.Listen}
	for _, u := range f.Upstreams {
		for i := range u.Endpoints {
			all = append(all, &u.Endpoints[i].Address)
		}
	}
	for _, l := range f.Listeners {
		for i := range l.Listen {
			all = append(all, &l.Listen[i])
		}
	}
	return all
}

// Paths are all that are relative to the file.
func (f *File) Paths() []*string {
	all := []*string{&f.Admin.TokenFile}
	for _, id := range f.Identities {
		all = append(all, &id.Files.Cert, &id.Files.Key, &id.Files.PKCS12, &id.Files.CA, &id.Files.CRL, &id.Files.PasswordFile)
		if id.Step != nil {
			all = append(all, &id.Step.PasswordFile, &id.Step.TokenFile, &id.Step.Storage)
		}
	}
	for _, u := range f.Upstreams {
		all = append(all, &u.Health.PasswordFile)
		if u.TLS != nil && u.TLS.CA != "system" {
			all = append(all, &u.TLS.CA)
		}
	}
	for _, l := range f.Listeners {
		if l.TLS != nil && l.TLS.CA != "system" {
			all = append(all, &l.TLS.CA)
		}
		if r := l.Request(); r != nil {
			all = append(all, &r.UsersFile)
		}
	}
	return all
}

// validate finds what no key by itself shows.
func (f *File) validate(d *decoder) {
	if len(f.Listeners) == 0 {
		d.failAt("listeners", "no listener; give at least one, with listen and upstream or rules")
	}
	f.Admin.validateSocket(d)
	f.Tracing.validate(d)
	if f.Admin.Listen != "" && !strings.HasPrefix(f.Admin.Listen, "unix:") && !f.Admin.UnsafeAdminListen && !isLoopback(f.Admin.Listen) {
		d.failAt("admin.listen", "%s can be reached by others; use 127.0.0.1 or a unix socket, or set unsafe_admin_listen: true", f.Admin.Listen)
	}
	if f.Admin.TokenFor == TokenForAll && f.Admin.TokenFile == "" {
		d.failAt("admin.token_for", "there is no token that all could need; give token_file, or remove token_for")
	}
	for _, id := range f.Identities {
		id.validate(d, "identities."+id.Name)
	}
	for _, u := range f.Upstreams {
		if d.full() { // what is wrong with the next would be looked for in vain
			return
		}
		u.validate(d, "upstreams."+u.Name, f)
	}
	for _, l := range f.Listeners {
		if d.full() {
			return
		}
		l.validate(d, "listeners."+l.Name, f)
	}
	f.checkTaken(d)
}

func (id *IdentitySection) validate(d *decoder, path string) {
	var given []string
	for _, key := range []string{"files", "step", "spiffe", "kubernetes"} {
		if d.at[path+"."+key] != nil {
			given = append(given, key)
		}
	}
	switch {
	case len(given) == 0:
		d.failAt(path, "no source of certificates; give files: {cert: FILE, key: FILE}, step: {…}, spiffe: {socket: unix:///path} or kubernetes: namespace/secret")
	case len(given) > 1:
		d.failAt(path, "an identity has one source of certificates; give only one of %s", strings.Join(given, ", "))
	case given[0] == "step":
		id.validateStep(d, path+".step")
	case given[0] == "spiffe" && d.at[path+".spiffe.socket"] == nil:
		d.failAt(path+".spiffe", "no socket; give that of the agent: unix:///path")
	case given[0] == "files":
		id.validateFiles(d, path+".files")
	}
}

func (id *IdentitySection) validateFiles(d *decoder, path string) {
	has := func(key string) bool { return d.at[path+"."+key] != nil }
	switch {
	case has("pkcs12") && (has("cert") || has("key")):
		d.failAt(path+".pkcs12", "pkcs12 has certificate and key in one file; remove it, or cert and key")
	case has("pkcs12") || has("ca") && !has("cert") && !has("key"):
	case !has("cert"):
		d.failAt(path, "no cert; give the file with the certificate chain, or ca alone for an identity that only verifies others")
	case !has("key"):
		d.failAt(path, "no key; give the file with the certificate's private key")
	}
}

func (id *IdentitySection) validateStep(d *decoder, path string) {
	has := func(key string) bool { return d.at[path+"."+key] != nil }
	for _, needed := range []struct{ key, fix string }{
		{"url", "give the CA's: https://HOST:PORT"},
		{"fingerprint", "give the SHA-256 of the CA's root: openssl x509 -in root_ca.crt -noout -fingerprint -sha256"},
		{"names", "give at least one name for the certificate: [orders.svc]"},
	} {
		if !has(needed.key) {
			d.failAt(path, "no %s; %s", needed.key, needed.fix)
		}
	}
	if has("names") && len(id.Step.Names) == 0 {
		d.failAt(path+".names", "empty; give at least one name for the certificate: [orders.svc]")
	}
	switch {
	case has("token_file") && (has("provisioner") || has("password_file")):
		d.failAt(path+".token_file", "enrol by a token, or by a provisioner's password: remove token_file, or provisioner and password_file")
	case has("token_file") && !has("storage"):
		d.failAt(path+".token_file", "a token is good once, and without storage the certificate is gone at a restart; give storage: FOLDER")
	case has("token_file"):
	case !has("provisioner") || !has("password_file"):
		d.failAt(path, "no way to enrol; give provisioner and password_file, or token_file")
	}
}

func (u *UpstreamSection) validate(d *decoder, path string, f *File) {
	for i, e := range u.Endpoints {
		checkSocketPath(d, e.Address, fmt.Sprintf("%s.endpoints[%d]", path, i))
	}
	u.validateResilience(d, path)
	u.validateStartTLS(d, path)
	u.validateMark(d, path)
	if u.proxyVersion() != 0 && u.Preconnect.Connections > 0 {
		d.failAt(path+".proxy_protocol", "a connection that is made before its client cannot say whose it is; remove preconnect, or proxy_protocol")
	}
	c := u.Connect
	if c.AttemptTimeout > c.Timeout {
		d.failAt(path+".connect.attempt_timeout", "%s is longer than connect.timeout (%s), which bounds all attempts; make one shorter or the other longer", c.AttemptTimeout, c.Timeout)
	}
	switch {
	case u.TLS != nil:
		u.validateTLS(d, path, f)
	case u.StartTLS != "" && u.StartTLS != "none":
		d.failAt(path+".starttls", "there is no tls to start; add tls: {}, or remove starttls")
	}
}

func (u *UpstreamSection) validateTLS(d *decoder, path string, f *File) {
	t := u.TLS
	if t.Identity != "" && f.identity(t.Identity) == nil {
		d.failAt(path+".tls.identity", "%s", unknownName(t.Identity, "identities", namesOf(f.Identities, func(id *IdentitySection) string { return id.Name })))
	}
	t.TLSChoiceSection.validate(d, path+".tls")
	if t.UnsafeSkipVerify && len(t.Principals) > 0 {
		d.failAt(path+".tls.principals", "unsafe_skip_verify accepts any server, so principals have no meaning; remove one of them")
	}
	for i, e := range u.Endpoints {
		if strings.HasPrefix(e.Address, "unix:") && t.ServerName == "" && len(t.Principals) == 0 && !t.UnsafeSkipVerify {
			d.failAt(fmt.Sprintf("%s.endpoints[%d]", path, i), "a unix socket has no host that a certificate could be for; set tls.server_name or tls.principals")
		}
	}
}

func (l *ListenerSection) validate(d *decoder, path string, f *File) {
	l.validateListen(d, path)
	l.validateRequests(d, path)
	l.validateChoice(d, path, f)
	l.validateProxy(d, path+".proxy_protocol")
	l.validateStartTLS(d, path+".starttls", f)
	if l.TLS == nil {
		return
	}
	l.TLS.validate(d, path+".tls", f)
	if l.UnsafePlaintextListen {
		d.failAt(path+".unsafe_plaintext_listen", "the listener has tls, so nothing is plaintext; remove one of them")
	}
}

// Upstream is the upstream of that name; nil if there is none.
func (f *File) Upstream(name string) *UpstreamSection { return f.upstreamOf[name] }

func namesOf[T any](all []T, name func(T) string) (out []string) {
	for _, v := range all {
		out = append(out, name(v))
	}
	return out
}

// maxNamed bounds the names that a mistake lists.
const maxNamed = 20

// unknownName says that a reference leads nowhere, and what there is.
func unknownName(name, section string, have []string) string {
	if len(have) == 0 {
		return fmt.Sprintf("there is no %q: the file has no %s", name, section)
	}
	more := ""
	if n := len(have) - maxNamed; n > 0 {
		have, more = have[:maxNamed], fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("there is no %q in %s; there is %s%s", name, section, strings.Join(have, ", "), more)
}

// isLoopback says whether "HOST:PORT" is only for this host. A name is judged
// when it is bound, but for localhost.
func isLoopback(address string) bool {
	host, _, _ := net.SplitHostPort(address)
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	return host != ""
}

// The checks of single values.

func checkUnixPath(path string) error {
	if path == "" || path == "@" {
		return errors.New("unix: needs a path, like unix:/run/app.sock")
	}
	return nil
}

// maxSocketPath is the longest path of a socket: systems have 104 bytes or more for one,
// with the zero at its end.
const maxSocketPath = 103

// checkSocketPath judges the path of "unix:/path" once it is absolute.
func checkSocketPath(d *decoder, address, at string) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok && len(path) > maxSocketPath {
		d.failAt(at, "the path of a socket has at most %d bytes, and %s has %d; choose a shorter folder", maxSocketPath, path, len(path))
	}
}

func checkAdminListen(s string) error {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if strings.HasPrefix(path, "@") {
			return fmt.Errorf("%q is an abstract socket, which every user of this host can open; give the path of a file", s)
		}
		return checkUnixPath(path)
	}
	return CheckHostPort(s)
}

func checkDNSServer(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	if ap, err := netip.ParseAddrPort(s); err != nil || ap.Port() == 0 {
		return fmt.Errorf("%q is no address of a DNS server; write an IP address, or IP:PORT", s)
	}
	return nil
}

func checkMode(s string) error {
	if n, err := strconv.ParseUint(s, 8, 32); err != nil || n > 0o777 || n == 0 {
		return fmt.Errorf("%q is no mode; write it in octal and in quotes, like \"0660\"", s)
	}
	return nil
}

func checkOwner(s string) error {
	_, _, err := lookupOwner(s)
	return err
}

// Warnings are the settings that take away a protection, one line each.
func (f *File) Warnings() []string {
	var out []string
	if f.Admin.UnsafeAdminListen {
		out = append(out, "admin.unsafe_admin_listen: the admin API may be on an address that others can reach")
	}
	for _, u := range f.Upstreams {
		if u.TLS == nil {
			continue
		}
		path := "upstreams." + u.Name + ".tls"
		if u.TLS.UnsafeSkipVerify {
			out = append(out, path+".unsafe_skip_verify: any server is accepted")
		}
		out = append(out, u.TLS.warnings(path)...)
	}
	for _, l := range f.Listeners {
		if l.UnsafePlaintextListen {
			out = append(out, "listeners."+l.Name+".unsafe_plaintext_listen: who reaches "+l.listening()+" acts with our certificate")
		}
		out = append(out, l.egressWarnings()...)
	}
	return out
}

// Text is what the configuration was read from, with its secrets; nil if it was made of
// flags.
func (f *File) Text() []byte { return f.text }

// Name is that of the file, as it was given; the command's where flags made it.
func (f *File) Name() string { return f.places.file }

// PrintYAML writes the configuration as it was written, variables and all, with ***
// for secrets. Most of those are in files of their own: see secretField. Comments are
// the writer's.
func (f *File) PrintYAML(w io.Writer) error {
	_, err := w.Write(f.printed)
	return err
}

// The values of sandbox.landlock.
const (
	landlockAuto     = "auto"
	LandlockOff      = "off"
	LandlockRequired = "required"
)

// SandboxSection is sandbox.
type SandboxSection struct{ Landlock string }

func (s *SandboxSection) fields() []field {
	return []field{enumField("landlock", "Keeps the process to the files and TCP ports that the configuration names, by Landlock (Linux). auto does what the kernel can, and nothing with COMMAND; required does not start without; applies from the next start on.",
		&s.Landlock, landlockAuto, LandlockOff, LandlockRequired).or(landlockAuto)}
}
