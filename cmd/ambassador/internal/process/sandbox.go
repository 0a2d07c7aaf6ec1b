package process

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"ambassador/certs/files"
	"ambassador/cmd/ambassador/internal/adminsocket"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/kubernetes"
	"ambassador/cmd/ambassador/internal/program"
)

// The sandbox limits a running process to what its configuration names, even if an
// attacker controls the process: the files that it may read and write, the TCP ports
// that it may listen on and connect to. It uses Linux's Landlock, which has three
// limits that shape this file. First, a sandbox can only become stricter, so a reload
// that needs more is refused. Second, it is inherited, so it is off with COMMAND, and a
// process that replaces itself with another program keeps it. Third, it does not cover
// UDP, MPTCP, or connections to unix sockets; therefore no socket of ours is MPTCP.

// noSandboxFor refuses a configuration that requires a sandbox if COMMAND would inherit
// it.
func noSandboxFor(f *config.File, command []string) error {
	if len(command) == 0 || f.Sandbox.Landlock != config.LandlockRequired {
		return nil
	}
	p := f.Problem("sandbox.landlock", errors.New("required, and COMMAND would inherit the sandbox; set auto or off, or start COMMAND by itself"))
	return &program.ExitError{Code: 2, Err: &config.Error{Problems: []config.Problem{p}}}
}

// access is what the process may do with files. Access to a folder is access to
// everything below it.
type access uint8

const (
	mayRead   access = 1 << iota // read files and list folders
	mayKeep                      // create, write, replace and remove files
	mayListen                    // create, replace and remove unix sockets
	mayStart                     // start programs, for an upgrade
)

// sandboxRemains is a sandbox for the next program, which the kernel keeps in it.
type sandboxRemains struct {
	Files   []grantRemains `json:"files"`
	Bind    map[int]bool   `json:"bind"`
	Connect map[int]bool   `json:"connect"`
	Reply   api.Sandbox    `json:"reply"`
}

type grantRemains struct {
	Path   string `json:"path"`
	Access access `json:"access"`
}

// remains returns the sandbox for the next program; nil if the next one decides.
func (s *sandbox) remains() *sandboxRemains {
	if s == nil || len(s.reply.Enforced) == 0 {
		return nil
	}
	r := &sandboxRemains{Bind: s.bind, Connect: s.connect, Reply: s.reply}
	for _, g := range s.files {
		r.Files = append(r.Files, grantRemains{g.path, g.access})
	}
	return r
}

// sandbox is the reverse of remains.
func (r *sandboxRemains) sandbox() *sandbox {
	if r == nil {
		return nil
	}
	s := &sandbox{limits{bind: r.Bind, connect: r.Connect}, r.Reply}
	for _, g := range r.Files {
		s.files.add(g.Access, g.Path)
	}
	return s
}

// wants is what a configuration needs from the sandbox.
type wants struct {
	files         []fileWant
	bind, connect []portWant
	// anyPort is the key that makes the destination ports unknown. If empty, connect
	// lists all ports.
	anyPort string
}

// fileWant is a file, or a folder if access is more than mayRead. key is its key in the
// configuration.
type fileWant struct {
	key, path string
	access    access
}

type portWant struct {
	key  string
	port int
}

// wantsOf lists what f needs. cfgPath is the file that f was read from, empty if there
// is none; adminFolder has the default admin socket.
func wantsOf(f *config.File, cfgPath, adminFolder string) *wants {
	w := &wants{}
	w.read("", cfgPath)
	w.read("admin.token_file", f.Admin.TokenFile)
	switch {
	case f.Admin.Off:
	case f.Admin.Listen == "":
		w.folder("admin.listen", adminFolder, mayListen)
	default:
		w.listen("admin.listen", f.Admin.Listen)
	}
	if f.Metrics.Listen != "" {
		w.listen("metrics.listen", f.Metrics.Listen)
	}
	if f.Tracing.OTLP != "" {
		w.dialURL("tracing.otlp", f.Tracing.OTLP)
	}
	for _, id := range f.Identities {
		w.identity("identities."+id.Name, id)
	}
	for _, u := range f.Upstreams {
		w.upstream("upstreams."+u.Name, u)
	}
	for _, l := range f.Listeners {
		w.listener("listeners."+l.Name, l)
	}
	w.connect = append(w.connect, portWant{"dns", 53}) // after a truncated answer
	for i, s := range f.DNSServers() {
		w.dial(fmt.Sprintf("dns.servers[%d]", i), s)
	}
	return w
}

func (w *wants) identity(key string, id *config.IdentitySection) {
	w.read(key+".files.cert", id.Files.Cert)
	w.read(key+".files.key", id.Files.Key)
	w.read(key+".files.pkcs12", id.Files.PKCS12)
	w.read(key+".files.ca", id.Files.CA)
	w.read(key+".files.crl", id.Files.CRL)
	w.read(key+".files.password_file", id.Files.PasswordFile)
	if id.Step == nil {
		return
	}
	w.read(key+".step.password_file", id.Step.PasswordFile)
	w.read(key+".step.token_file", id.Step.TokenFile)
	w.folder(key+".step.storage", id.Step.Storage, mayRead|mayKeep)
	w.dialURL(key+".step.url", id.Step.URL)
}

// dialURL wants the port of a URL.
func (w *wants) dialURL(key, text string) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
	case u.Port() != "":
		w.dial(key, u.Host)
	case u.Scheme == "http":
		w.connect = append(w.connect, portWant{key, 80})
	default:
		w.connect = append(w.connect, portWant{key, 443})
	}
}

func (w *wants) upstream(key string, u *config.UpstreamSection) {
	w.read(key+".health.password_file", u.Health.PasswordFile)
	w.read(key+".tls.ca", u.CAFile())
	switch {
	case u.Dynamic:
		w.anyPort = key + ".dynamic"
	case u.SRV != "":
		w.anyPort = key + ".srv"
	}
	for i, e := range u.Endpoints {
		if e.Kubernetes != "" {
			w.anyPort = fmt.Sprintf("%s.endpoints[%d].kubernetes", key, i) // the pods' ports may change
			continue
		}
		w.dial(fmt.Sprintf("%s.endpoints[%d]", key, i), e.Address)
	}
	if p := u.Health.HTTP.Port; p != 0 {
		w.connect = append(w.connect, portWant{key + ".health.http.port", p})
	}
}

func (w *wants) listener(key string, l *config.ListenerSection) {
	for _, listen := range l.Listen {
		w.listen(key+".listen", listen)
	}
	w.read(key+".tls.ca", l.CAFile())
	if r := l.Request(); r != nil {
		w.read(key+"."+l.RequestKey()+".users_file", r.UsersFile)
	}
}

func (w *wants) read(key, path string) {
	if path != "" {
		w.files = append(w.files, fileWant{key, path, mayRead})
	}
}

func (w *wants) folder(key, path string, a access) {
	if path != "" {
		w.files = append(w.files, fileWant{key, path, a})
	}
}

// listen adds an address that we listen on. A systemd socket and an abstract one need
// nothing.
func (w *wants) listen(key, address string) {
	if _, err := strconv.ParseUint(address, 10, 16); err == nil {
		address = "localhost:" + address
	}
	switch path, ok := strings.CutPrefix(address, "unix:"); {
	case ok && strings.HasPrefix(path, "@"):
	case ok:
		w.folder(key, filepath.Dir(path), mayListen)
	default:
		if port, ok := portOf(address); ok {
			w.bind = append(w.bind, portWant{key, port})
		}
	}
}

// dial adds an address that we connect to. A unix socket needs nothing.
func (w *wants) dial(key, address string) {
	if port, ok := portOf(address); ok && !strings.HasPrefix(address, "unix:") {
		w.connect = append(w.connect, portWant{key, port})
	}
}

func portOf(address string) (port int, ok bool) {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return 0, false
	}
	port, err = strconv.Atoi(text)
	return port, err == nil
}

// grant gives the process access to a file, or to a folder and everything below it.
type grant struct {
	path   string
	access access
	info   fs.FileInfo // a rule covers the file that has the path when the rule is made
}

// grants is the part of a sandbox that covers files. A path that does not exist cannot
// be granted, and is left out.
type grants []grant

func (g *grants) add(a access, paths ...string) {
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil || slices.ContainsFunc(*g, func(had grant) bool { return had.access&a == a && os.SameFile(had.info, info) }) {
			continue
		}
		*g = append(*g, grant{path, a, info})
	}
}

// of adds grants for what w needs.
func (g *grants) of(w *wants) {
	for _, f := range w.files {
		if f.access == mayRead {
			g.add(mayRead, readPaths(f.path)...)
		} else {
			g.add(f.access, f.path)
		}
	}
}

// system adds grants for what Go's libraries read while the process runs: the files of
// the resolver, of users and groups, the system's roots, time zones, and sources of
// metrics. It grants all of /etc instead of single files, because programs replace
// these files, and a rule ends when its file is replaced. Secrets in /etc are protected
// by their mode.
func (g *grants) system(env func(string) (string, bool)) {
	g.add(mayRead, "/etc", "/proc", "/dev/null", "/dev/urandom",
		"/usr/share/zoneinfo", "/usr/share/lib/zoneinfo", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/pki", "/usr/lib/ssl", "/usr/local/etc/ssl")
	g.add(mayRead, systemLibraries...)
	for _, path := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem", "/etc/pki/tls/certs/ca-bundle.crt"} {
		g.add(mayRead, readPaths(path)...)
	}
	if path, _ := env("SSL_CERT_FILE"); path != "" {
		g.add(mayRead, readPaths(path)...)
	}
	if list, _ := env("SSL_CERT_DIR"); list != "" {
		g.add(mayRead, filepath.SplitList(list)...)
	}
	if path, _ := env("ZONEINFO"); path != "" {
		g.add(mayRead, path)
	}
	if exe, err := os.Executable(); err == nil { // the next version, and the way back to this one
		g.add(mayRead|mayStart, folderOf(exe), exe, "/proc/self/exe")
		g.add(mayRead|mayStart, systemLibraries...) // the loader of a program that is not static
	}
}

// readPaths lists what must be readable so that path can be read, even after the file
// or a link on the way to it is replaced. Kubernetes replaces a link; certbot and
// others replace the file. The list has the folder of path, the folder of the file that
// path leads to, and the folder of every link between. It leaves out a folder that
// holds half the system if only a link, or nothing, is there.
func readPaths(path string) []string {
	out := []string{folderOf(path)}
	for _, at := range files.Trail(path) {
		info, err := os.Lstat(at)
		if isFile := err == nil && info.Mode().Type() != fs.ModeSymlink; isFile || !slices.Contains(systemFolders, filepath.Dir(at)) {
			out = append(out, folderOf(at))
		}
	}
	return out
}

// folderOf is the folder of a file. It is the file itself if the folder is / or /dev:
// they hold the whole system, or its devices.
func folderOf(path string) string {
	if dir := filepath.Dir(path); dir != "/" && dir != "/dev" {
		return dir
	}
	return path
}

// systemFolders are folders whose contents are unrelated to each other.
var systemFolders = []string{"/", "/bin", "/dev", "/home", "/lib", "/media", "/mnt", "/opt", "/root", "/run", "/sbin", "/srv", "/tmp", "/usr", "/var"}

// limits is a sandbox in the form that the kernel needs. A nil map means no limit.
type limits struct {
	files         grants
	bind, connect map[int]bool
}

// limitsFor returns the sandbox for what a configuration needs.
func limitsFor(w *wants, env func(string) (string, bool)) limits {
	l := limits{bind: portSet(w.bind)}
	l.files.system(env)
	l.files.of(w)
	if w.anyPort == "" {
		l.connect = portSet(w.connect)
	}
	return l
}

func portSet(all []portWant) map[int]bool {
	set := map[int]bool{}
	for _, w := range all {
		set[w.port] = true
	}
	return set
}

// The Landlock ABI versions that are needed. Files need version 2: without it, a unix
// socket cannot be moved out of the folder in which it is made.
const (
	abiFiles = 2
	abiPorts = 4
)

// able returns the part of l that an ABI can enforce, and why the rest is missing.
// anyPort is the key that makes connect unlimited.
func (l limits) able(abi int, anyPort string) (limits, api.Sandbox) {
	r := api.Sandbox{ABI: abi, Enforced: []string{"files"}}
	switch {
	case abi < abiFiles:
		return limits{}, api.Sandbox{Enforced: []string{}, Reason: fmt.Sprintf("the kernel has Landlock ABI %d, %d is needed", abi, abiFiles)}
	case abi < abiPorts:
		l.bind, l.connect = nil, nil
		r.Reason = fmt.Sprintf("ports need ABI %d", abiPorts)
		return l, r
	}
	r.Enforced = append(r.Enforced, "bind")
	if l.connect != nil {
		r.Enforced = append(r.Enforced, "connect")
	} else {
		r.Reason = "any port can be connected to because of " + anyPort
	}
	return l, r
}

// sandbox is the decision made at the start. It is never reverted.
type sandbox struct {
	limits // the enforced limits; zero: none
	reply  api.Sandbox
}

// harden removes rights that the process never needs. Its memory cannot be dumped to a
// file or read by another process of the user (PR_SET_DUMPABLE). What it executes
// cannot gain more rights (PR_SET_NO_NEW_PRIVS). COMMAND would inherit the second and
// may need more rights, so the second is left out with COMMAND.
func (p *Process) harden() {
	if !p.opts.alone {
		return
	}
	if err := hardenProcess(len(p.opts.Command) == 0); err != nil {
		p.log.Warn("the process is not hardened", "cause", err.Error())
	}
}

// enterSandbox decides about the sandbox once: at the start, after everything outside
// the sandbox that f needs is open or created, and before the first session. The caller
// holds reloading.
func (p *Process) enterSandbox(f *config.File) error {
	if p.sandbox != nil || !p.opts.alone {
		return nil
	}
	s, err := p.newSandbox(f)
	if err != nil && f.Sandbox.Landlock == config.LandlockRequired {
		return fmt.Errorf("sandbox.landlock: required, and it is not possible: %w; set auto or off to start without", err)
	}
	if err != nil {
		s = &sandbox{reply: api.Sandbox{Enforced: []string{}, Reason: err.Error()}}
	}
	p.sandbox = s
	p.log.Info("sandbox", "state", s.reply.String())
	return nil
}

// newSandbox confines the process to what f needs. On an error the process is not
// confined.
func (p *Process) newSandbox(f *config.File) (*sandbox, error) {
	switch mode := f.Sandbox.Landlock; {
	case mode == config.LandlockOff:
		return nil, errors.New("sandbox.landlock is off")
	case len(p.opts.Command) > 0:
		return nil, errors.New("COMMAND would inherit it")
	}
	abi, err := landlockABI()
	if err != nil {
		return nil, err
	}
	w := p.wants(f)
	l, reply := limitsFor(w, p.world.Env).able(abi, w.anyPort)
	switch {
	case len(reply.Enforced) == 0:
		return nil, errors.New(reply.Reason)
	case f.Sandbox.Landlock == config.LandlockRequired && abi < abiPorts:
		return nil, fmt.Errorf("the kernel has Landlock ABI %d, and ports need %d", abi, abiPorts)
	}
	if err := restrictProcess(l); err != nil {
		return nil, err
	}
	return &sandbox{l, reply}, nil
}

func (p *Process) wants(f *config.File) *wants {
	cfgPath := ""
	if p.opts.Load != nil {
		cfgPath, _ = filepath.Abs(f.Name()) // an error means that the working folder no longer exists
	}
	w := wantsOf(f, cfgPath, adminsocket.DefaultFolder(p.world.Env).Path)
	w.apiServer(f, p.kubernetes)
	return w
}

// apiServer adds what the first key needs that names an object of Kubernetes.
func (w *wants) apiServer(f *config.File, api *kubernetes.Client) {
	keys := f.KubernetesKeys()
	if len(keys) == 0 {
		return
	}
	token, ca := api.Files()
	w.read(keys[0], token)
	w.read(keys[0], ca)
	w.dial(keys[0], api.Address())
}

// sandboxed is what is enforced, for the API; nil if the process is not alone.
func (p *Process) sandboxed() *api.Sandbox {
	if p.sandbox == nil {
		return nil
	}
	return &p.sandbox.reply
}

// withinSandbox refuses a configuration that does not work inside the sandbox.
// Otherwise the kernel would refuse it later, with a less clear error. The caller holds
// reloading.
func (p *Process) withinSandbox(f *config.File) error {
	if p.sandbox == nil {
		return nil
	}
	p.mu.Lock()
	old := p.file
	p.mu.Unlock()
	if old == nil { // the program before has set the sandbox, and has left the sockets
		old = f
	}
	if old.Sandbox.Landlock != f.Sandbox.Landlock {
		p.log.Warn("sandbox.landlock has changed, and applies from the next start on", "now", p.sandbox.reply.String())
	}
	var problems []config.Problem
	for _, r := range p.sandbox.refuses(p.wants(f), p.wants(old)) {
		problems = append(problems, f.Problem(r.key, errors.New(r.text)))
	}
	if err := config.ErrorOf(problems); err != nil {
		return &program.ExitError{Code: 2, Err: err}
	}
	return nil
}

// refusal is why the sandbox does not allow a key.
type refusal struct{ key, text string }

// refuses lists what w needs and the sandbox does not allow. A reload keeps existing
// sockets, so sockets in had need no permission.
func (s *sandbox) refuses(w, had *wants) (out []refusal) {
	refuse := func(key, what string) {
		out = append(out, refusal{key, what + " is outside the sandbox that was set at the start, which can only get tighter; restart, or set sandbox.landlock: off (from the next start on)"})
	}
	for _, f := range w.files {
		if s.files != nil && !s.files.allow(f.path, f.access) && !(f.access == mayListen && slices.Contains(had.files, f)) {
			refuse(f.key, f.path)
		}
	}
	for _, b := range w.bind {
		if s.bind != nil && !s.bind[b.port] {
			refuse(b.key, fmt.Sprintf("listening on port %d", b.port))
		}
	}
	if s.connect == nil {
		return out
	}
	if w.anyPort != "" {
		refuse(w.anyPort, "connecting to any port")
	}
	for _, c := range w.connect {
		if !s.connect[c.port] {
			refuse(c.key, fmt.Sprintf("connecting to port %d", c.port))
		}
	}
	return out
}

// allow reports whether access to path is granted. As in the kernel, the file and every
// folder above it count. A folder that was replaced since the start is a different
// folder.
func (g grants) allow(path string, a access) bool {
	for at := resolveLinks(path); ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err == nil && slices.ContainsFunc(g, func(had grant) bool { return had.access&a == a && os.SameFile(had.info, info) }) {
			return true
		}
		if at == filepath.Dir(at) {
			return false
		}
	}
}

// resolveLinks resolves the links in the part of path that exists.
func resolveLinks(path string) string {
	if found, err := filepath.EvalSymlinks(path); err == nil {
		return found
	}
	if dir := filepath.Dir(path); dir != path {
		return filepath.Join(resolveLinks(dir), filepath.Base(path))
	}
	return path
}
