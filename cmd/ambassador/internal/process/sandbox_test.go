package process

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"ambassador/certs/step"
	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/l4/unixsocket"
)

// everySection is a configuration with one of everything that has paths or addresses.
func everySection() *config.File {
	return &config.File{
		Identities: []*config.IdentitySection{{Name: "f"}, {Name: "s", Step: &step.Config{}}},
		Upstreams:  []*config.UpstreamSection{{Name: "u", TLS: &config.TLSSection{}, Endpoints: []config.EndpointSection{{}}}},
		Listeners: []*config.ListenerSection{{Name: "socks", TLS: &config.ListenerTLSSection{}, SOCKS5: &config.RequestSection{}},
			{Name: "connect", HTTPConnect: &config.RequestSection{}}},
	}
}

// TestEveryPathIsInTheSandbox asserts that the sandbox knows everything that File.Paths
// and File.Addresses list. A key that is added there and forgotten here would work
// until the process is sandboxed.
func TestEveryPathIsInTheSandbox(t *testing.T) {
	f := everySection()
	has := func(path string) bool {
		return slices.ContainsFunc(wantsOf(f, "", "/admin").files, func(w fileWant) bool { return w.path == path && w.key != "" })
	}
	for i, p := range f.Paths() {
		*p = fmt.Sprintf("/folder%d/file", i)
		if !has(*p) {
			t.Errorf("File.Paths()[%d] is not in the sandbox", i)
		}
		*p = ""
	}
	upstream := &f.Upstreams[0].Endpoints[0].Address
	for i, a := range f.Addresses() {
		*a = fmt.Sprintf("unix:/folder%d/socket", i)
		if !has(fmt.Sprintf("/folder%d", i)) && a != upstream {
			t.Errorf("File.Addresses()[%d] on a unix socket is not in the sandbox", i)
		}
		*a = fmt.Sprintf("127.0.0.1:%d", 1000+i)
		w := wantsOf(f, "", "/admin")
		if !portSet(w.bind)[1000+i] && !portSet(w.connect)[1000+i] {
			t.Errorf("File.Addresses()[%d] on a TCP port is not in the sandbox", i)
		}
		*a = ""
	}
}

func TestPortsOfTheSandbox(t *testing.T) {
	const head = "admin: {listen: \"\"}\nlisteners: {l: {listen: \"127.0.0.1:5000\", upstream: u}, any: {listen: \"127.0.0.1:0\", upstream: u}, s: {listen: \"systemd:x\", upstream: u}}\n"
	for name, test := range map[string]struct {
		text          string
		bind, connect []int
		anyPort       string
	}{
		"endpoints":   {text: "upstreams: {u: {endpoints: [\"db:5432\", \"unix:/run/x.sock\"]}}", connect: []int{53, 5432}},
		"health.http": {text: "upstreams: {u: {endpoints: [\"db:5432\"], health: {http: {port: 8008}}}}", connect: []int{53, 5432, 8008}},
		"dns":         {text: "dns: {servers: [\"10.0.0.2:5353\", \"10.0.0.3\"]}\nupstreams: {u: {endpoints: [\"db:1\"]}}", connect: []int{1, 53, 5353}},
		"metrics":     {text: "metrics: {listen: \"127.0.0.1:9902\"}\nupstreams: {u: {endpoints: [\"db:1\"]}}", bind: []int{9902}, connect: []int{1, 53}},
		"srv":         {text: "upstreams: {u: {srv: _x._tcp.db}}", anyPort: "upstreams.u.srv"},
		"dynamic":     {text: "upstreams: {u: {endpoints: [\"db:1\"]}, d: {dynamic: true}}", anyPort: "upstreams.d.dynamic"},
		"step": {text: "identities: {i: {step: {url: \"https://ca:9000\", fingerprint: " + strings.Repeat("ab", 32) + ", provisioner: p, password_file: pw, names: [a]}}}\n" +
			"upstreams: {u: {endpoints: [\"db:1\"], tls: {identity: i}}}", connect: []int{1, 53, 9000}},
		"step at its usual port": {text: "identities: {i: {step: {url: \"https://ca\", fingerprint: " + strings.Repeat("ab", 32) + ", provisioner: p, password_file: pw, names: [a]}}}\n" +
			"upstreams: {u: {endpoints: [\"db:1\"], tls: {identity: i}}}", connect: []int{1, 53, 443}},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := config.Parse("a.yaml", "/etc/a", []byte(head+test.text), cmdtest.Env)
			if err != nil {
				t.Fatal(err)
			}
			l := limitsFor(wantsOf(f, "", ""), cmdtest.Env)
			w := wantsOf(f, "", "")
			if got, want := portList(l.bind), portList(portSet(ports(append(test.bind, 0, 5000)))); got != want {
				t.Errorf("bind: %s, want %s", got, want)
			}
			if got, want := portList(l.connect), portList(portSet(ports(test.connect))); got != want || (l.connect == nil) != (test.anyPort != "") {
				t.Errorf("connect: %s, want %s", got, want)
			}
			if w.anyPort != test.anyPort {
				t.Errorf("any port because of %q, want %q", w.anyPort, test.anyPort)
			}
		})
	}
}

func portList(set map[int]bool) string { return fmt.Sprint(slices.Sorted(maps.Keys(set))) }

func ports(all []int) (out []portWant) {
	for _, p := range all {
		out = append(out, portWant{"", p})
	}
	return out
}

func TestWhatAKernelIsAbleTo(t *testing.T) {
	with := limits{bind: map[int]bool{1: true}, connect: map[int]bool{2: true}}
	without := limits{bind: map[int]bool{1: true}}
	for _, test := range []struct {
		abi     int
		limits  limits
		anyPort string
		want    string
	}{
		{1, with, "", "off: the kernel has Landlock ABI 1, 2 is needed"},
		{3, with, "", "landlock ABI 3: files (ports need ABI 4)"},
		{4, with, "", "landlock ABI 4: files, bind, connect"},
		{7, without, "upstreams.d.dynamic", "landlock ABI 7: files, bind (any port can be connected to because of upstreams.d.dynamic)"},
	} {
		l, reply := test.limits.able(test.abi, test.anyPort)
		if reply.String() != test.want {
			t.Errorf("ABI %d: %s, want %s", test.abi, reply, test.want)
		}
		if (l.bind != nil) != slices.Contains(reply.Enforced, "bind") || (l.connect != nil) != slices.Contains(reply.Enforced, "connect") {
			t.Errorf("ABI %d: limits %v, and it says %v", test.abi, l, reply.Enforced)
		}
	}
}

// TestFoldersOfLinks asserts that a file can be read through links, any of which may be
// replaced.
func TestFoldersOfLinks(t *testing.T) {
	root := t.TempDir()
	in := func(elem ...string) string { return filepath.Join(append([]string{root}, elem...)...) }
	cmdtest.MustDo(t, os.MkdirAll(in("secret", "..1"), 0o700), os.WriteFile(in("secret", "..1", "key"), nil, 0o600),
		os.Symlink("..1", in("secret", "..data")), os.Symlink("..data/key", in("secret", "key")), // Kubernetes
		os.MkdirAll(in("archive"), 0o700), os.MkdirAll(in("live"), 0o700), os.WriteFile(in("archive", "key1"), nil, 0o600),
		os.Symlink("../archive/key1", in("live", "key")), // certbot
		os.MkdirAll(in("app", "releases", "1"), 0o700), os.WriteFile(in("app", "releases", "1", "key"), nil, 0o600),
		os.Symlink("releases/1", in("app", "current")))
	for path, want := range map[string][]string{
		in("secret", "key"):         {in("secret"), in("secret", "..1")},
		in("live", "key"):           {in("archive"), in("live")},
		in("app", "current", "key"): {in("app"), in("app", "current"), in("app", "releases", "1")},
		"/key":                      {"/key"},
		"/dev/null":                 {"/dev/null"},
	} {
		got := readPaths(path)
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	for _, path := range []string{"/var/run/absent/key", "/var/run/key"} {
		for _, folder := range readPaths(path) {
			if slices.Contains([]string{"/", "/var"}, folder) {
				t.Errorf("%s: all of %s may be read", path, folder)
			}
		}
	}
}

func TestWhatTheSandboxRefuses(t *testing.T) {
	root := t.TempDir()
	in := func(elem ...string) string { return filepath.Join(append([]string{root}, elem...)...) }
	for _, dir := range []string{"certs", "store", "socks", "other"} {
		cmdtest.MustDo(t, os.Mkdir(in(dir), 0o700))
	}
	cmdtest.MustDo(t, os.WriteFile(in("certs", "a"), nil, 0o600), os.WriteFile(in("other", "a"), nil, 0o600), os.Symlink(in("other", "a"), in("certs", "link")))
	had := &wants{files: []fileWant{{"a", in("certs", "a"), mayRead}, {"s", in("store"), mayRead | mayKeep}, {"l", in("socks"), mayListen}},
		bind: []portWant{{"b", 5000}}, connect: []portWant{{"c", 53}}}
	s := &sandbox{limits: limitsFor(had, cmdtest.Env)}
	file := func(path string, a access) *wants { return &wants{files: []fileWant{{"key", path, a}}} }
	for name, test := range map[string]struct {
		want    *wants
		refused string
	}{
		"the same":               {had, ""},
		"a file beside":          {file(in("certs", "b"), mayRead), ""},
		"a file below":           {file(in("certs", "x", "y"), mayRead), ""},
		"a file elsewhere":       {file(in("other", "a"), mayRead), in("other", "a")},
		"a link to elsewhere":    {file(in("certs", "link"), mayRead), in("certs", "link")},
		"writing where we read":  {file(in("certs"), mayKeep), in("certs")},
		"reading what we keep":   {file(in("store", "x"), mayRead), ""},
		"a socket elsewhere":     {file(in("other"), mayListen), in("other")},
		"a port":                 {&wants{bind: []portWant{{"key", 5001}}}, "listening on port 5001"},
		"a port to connect to":   {&wants{connect: []portWant{{"key", 5432}}}, "connecting to port 5432"},
		"any port to connect to": {&wants{anyPort: "key"}, "connecting to any port"},
	} {
		t.Run(name, func(t *testing.T) {
			got := s.refuses(test.want, had)
			switch {
			case test.refused == "" && len(got) > 0:
				t.Errorf("refused: %q", got)
			case test.refused == "":
			case len(got) != 1 || got[0].key != "key" || !strings.HasPrefix(got[0].text, test.refused+" is outside the sandbox") || !strings.Contains(got[0].text, "restart, or set sandbox.landlock: off"):
				t.Errorf("%q, want %q refused", got, test.refused)
			}
		})
	}
	if got := (&sandbox{}).refuses(&wants{files: []fileWant{{"a", "/x", mayRead}}, bind: []portWant{{"b", 1}}, anyPort: "c"}, had); len(got) > 0 {
		t.Errorf("without limits %q is refused", got)
	}
	// A folder that was replaced is a different one, which the kernel does not know.
	cmdtest.MustDo(t, os.Rename(in("certs"), in("old")), os.Mkdir(in("certs"), 0o700), os.WriteFile(in("certs", "a"), nil, 0o600))
	if got := s.refuses(file(in("certs", "a"), mayRead), had); len(got) != 1 {
		t.Errorf("%q; want the folder that was replaced refused", got)
	}
}

func TestCommandAndARequiredSandbox(t *testing.T) {
	f, err := config.Parse("a.yaml", "/etc/a", []byte("sandbox: {landlock: required}\n"+cmdtest.Good), cmdtest.Env)
	if err != nil {
		t.Fatal(err)
	}
	if err := noSandboxFor(f, nil); err != nil {
		t.Error(err)
	}
	if err := noSandboxFor(f, []string{"app"}); codeOf(err) != 2 || !strings.Contains(err.Error(), "a.yaml:1:21: sandbox.landlock: required, and COMMAND would inherit") {
		t.Errorf("exit code %d: %v", codeOf(err), err)
	}
}

// beSandboxed enters the sandbox of a configuration file. Then it makes attempts, "WHAT
// ARGUMENT" each, on threads that existed before. It prints a line for each attempt.
func beSandboxed(path string, attempts []string) int {
	w := program.World{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Env: os.LookupEnv}
	opts := FileOptions(path, w.Env, false, func(*config.File) {})
	f, err := opts.Load()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	opts.alone = true
	p, err := newProcess(context.Background(), w, opts, nil)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	threads := make([]chan func(), 4)
	for i := range threads {
		threads[i] = make(chan func())
		go func() { // ends with the process
			runtime.LockOSThread()
			for f := range threads[i] {
				f()
			}
		}()
		on(threads[i], func() error { return nil }) // wait until the thread exists
	}
	p.harden()
	s, err := p.newSandbox(f)
	if err != nil {
		fmt.Println("off:", err)
		return 0
	}
	fmt.Println(s.reply)
	for i, text := range attempts {
		what, argument, _ := strings.Cut(text, " ")
		fmt.Println(text+":", said(on(threads[i%len(threads)], func() error { return attempt(what, argument) })))
	}
	return 0
}

// on runs f on a thread.
func on(thread chan func(), f func() error) error {
	result := make(chan error)
	thread <- func() { result <- f() }
	return <-result
}

func said(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, fs.ErrPermission):
		return "denied"
	}
	return err.Error()
}

func attempt(what, argument string) (err error) {
	ctx := context.Background()
	switch what {
	case "read":
		_, err = os.ReadFile(argument)
	case "list":
		_, err = os.ReadDir(argument)
	case "write":
		err = os.WriteFile(argument, nil, 0o600)
	case "replace":
		if err = os.WriteFile(argument+".new", nil, 0o600); err == nil {
			err = os.Rename(argument+".new", argument)
		}
	case "remove":
		err = os.Remove(argument)
	case "bind":
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		var ln net.Listener
		if ln, err = lc.Listen(ctx, "tcp", argument); err == nil {
			err = ln.Close()
		}
	case "connect":
		network := "tcp"
		if strings.HasPrefix(argument, "/") {
			network = "unix"
		}
		var c net.Conn
		if c, err = net.Dial(network, argument); err == nil {
			err = c.Close()
		}
	case "socket": // twice: the second socket replaces the file that the first left
		for range 2 {
			var s *unixsocket.Socket
			if s, err = unixsocket.Listen(ctx, argument, unixsocket.Config{Mode: 0o660}); err != nil {
				return err
			}
			s.UnixListener.Close() // the file stays
		}
	case "execute":
		err = exec.Command(argument).Run()
	case "roots":
		_, err = x509.SystemCertPool()
	case "user":
		_, err = user.Lookup(argument)
	case "resolve":
		_, err = net.DefaultResolver.LookupHost(ctx, argument)
	default:
		err = errors.New("unknown attempt")
	}
	return err
}

// needLandlock skips a test if the kernel cannot enforce the whole sandbox.
func needLandlock(t *testing.T) {
	t.Helper()
	if abi, err := landlockABI(); err != nil || abi < abiPorts {
		t.Skipf("the kernel has Landlock ABI %d, and %d is needed: %v", abi, abiPorts, err)
	}
}

// TestTheKernelEnforcesTheSandbox tries what a process in a configuration's sandbox
// must be able to do, and what it must not.
func TestTheKernelEnforcesTheSandbox(t *testing.T) {
	needLandlock(t)
	root := cmdtest.ShortDir(t)
	in := func(elem ...string) string { return filepath.Join(append([]string{root}, elem...)...) }
	for _, dir := range []string{"conf", "certs", "store", "socks", "other"} {
		cmdtest.MustDo(t, os.Mkdir(in(dir), 0o700))
	}
	listen := func(network, addr string) net.Listener {
		ln, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln
	}
	upstream, other, agent := listen("tcp", "127.0.0.1:0").Addr(), listen("tcp", "127.0.0.1:0").Addr(), listen("unix", in("other", "agent")).Addr()
	free, taken := cmdtest.Nobody(t), cmdtest.Nobody(t)
	text := fmt.Sprintf(`
admin: {listen: "unix:%s"}
identities:
  i: {step: {url: "https://127.0.0.1:1", fingerprint: %s, provisioner: p, password_file: ../certs/pw, names: [a], storage: ../store}}
upstreams: {u: {endpoints: [%q], tls: {identity: i}}}
listeners:
  l: {listen: %q, upstream: u}
  any: {listen: "127.0.0.1:0", upstream: u}
`, in("socks", "admin"), strings.Repeat("ab", 32), upstream, free)
	cmdtest.MustDo(t, os.WriteFile(in("conf", "a.yaml"), []byte(text), 0o600), os.WriteFile(in("certs", "pw"), []byte("secret"), 0o600),
		os.WriteFile(in("other", "shadow"), []byte("secret"), 0o600), os.Symlink(in("other", "shadow"), in("certs", "link")))
	attempts := [][2]string{
		{"read " + in("conf", "a.yaml"), "ok"},
		{"read " + in("certs", "pw"), "ok"},
		{"read " + in("other", "shadow"), "denied"},
		{"read " + in("certs", "link"), "denied"},
		{"list " + in("other"), "denied"},
		{"list " + root, "denied"},
		{"write " + in("conf", "a.yaml"), "denied"},
		{"write " + in("certs", "new"), "denied"},
		{"write " + in("other", "shadow"), "denied"},
		{"remove " + in("certs", "pw"), "denied"},
		{"replace " + in("store", "identity.pem"), "ok"},
		{"replace " + in("store", "identity.pem"), "ok"},
		{"remove " + in("store", "identity.pem"), "ok"},
		{"socket " + in("socks", "s"), "ok"},
		{"socket " + in("other", "s"), "denied"},
		{"write " + in("socks", "file"), "denied"},
		{"bind " + free, "ok"},
		{"bind " + taken, "denied"},
		{"bind 127.0.0.1:0", "ok"},
		{"connect " + upstream.String(), "ok"},
		{"connect " + other.String(), "denied"},
		{"connect " + agent.String(), "ok"},
		{"execute /bin/true", "denied"},
		{"read /etc/hosts", "ok"},
		{"read /proc/self/limits", "ok"},
		{"list /proc/self/fd", "ok"},
		{"write /etc/ambassador-test", "denied"},
		{"roots", "ok"},
		{"user root", "ok"},
		{"resolve localhost", "ok"},
	}
	cmd := exec.Command(cmdtest.Self(t), in("conf", "a.yaml"))
	cmd.Env = append(os.Environ(), cmdtest.As+"=sandboxed")
	want := []string{"landlock ABI "}
	for _, a := range attempts {
		cmd.Args = append(cmd.Args, a[0])
		want = append(want, a[0]+": "+a[1])
	}
	got, err := cmd.CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(got)), "\n")
	if err != nil || len(lines) != len(want) {
		t.Fatalf("%v:\n%s", err, got)
	}
	if !strings.HasPrefix(lines[0], want[0]) || !strings.HasSuffix(lines[0], ": files, bind, connect") {
		t.Errorf("enforced: %s", lines[0])
	}
	for i := range attempts {
		if lines[i+1] != want[i+1] {
			t.Errorf("%s; want %s", lines[i+1], attempts[i][1])
		}
	}
}
