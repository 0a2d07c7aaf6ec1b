package integration

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// needSandbox skips a test where the kernel of this host cannot do what the
// ambassador says in its one line about it.
func needSandbox(t *testing.T, a *ambassador) (state string) {
	t.Helper()
	state = a.await(`"msg":"sandbox","state":"([^"]*)"`)[1]
	if strings.HasPrefix(state, "off: the kernel") || strings.Contains(state, "ports need") || runtime.GOOS != "linux" {
		t.Skipf("no sandbox on this host: %s", state)
	}
	return state
}

// TestSandboxIsOn: the sandbox is on by default, and the API, the status and the log
// say what it enforces.
func TestSandboxIsOn(t *testing.T) {
	t.Parallel()
	const some, ports = `^landlock ABI \d+: files, bind`, `^landlock ABI \d+: files, bind, connect$`
	s := startServer(t, nil, echo)
	file := func(text string) []string {
		return []string{"run", "-c", writeFile(t, "a.yaml", strings.ReplaceAll(text, "UP", s.addr))}
	}
	const one = "upstreams: {up: {endpoints: [\"UP\"]}}\nlisteners: {front: {listen: \"127.0.0.1:0\", upstream: up}}\n"
	for name, test := range map[string]struct {
		args     []string
		enforced []string
		state    string
	}{
		"run":             {file(one), []string{"files", "bind", "connect"}, ports},
		"run, required":   {file("sandbox: {landlock: required}\n" + one), []string{"files", "bind", "connect"}, ports},
		"run, off":        {file("sandbox: {landlock: \"off\"}\n" + one), nil, `^off: sandbox.landlock is off$`},
		"run, dynamic":    {file("upstreams: {up: {endpoints: [\"UP\"]}, d: {dynamic: true}}\nlisteners: {front: {listen: \"127.0.0.1:0\", upstream: up}}\n"), []string{"files", "bind"}, some + ` \(any port can be connected to because of upstreams.d.dynamic\)$`},
		"forward":         {[]string{"forward", "--plain", "--listen", "127.0.0.1:0", "--to", s.addr}, []string{"files", "bind", "connect"}, ports},
		"socks5":          {[]string{"socks5", "--listen", "127.0.0.1:0", "--allow", "127.0.0.1/32:*"}, []string{"files", "bind"}, some},
		"run and COMMAND": {append(file(one), "--", "sleep", "60"), nil, `^off: COMMAND would inherit it$`},
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, test.args...)
			state := a.await(`"msg":"sandbox","state":"([^"]*)"`)[1]
			if test.enforced != nil {
				needSandbox(t, a)
			}
			if !regexp.MustCompile(test.state).MatchString(state) {
				t.Errorf("the log says %q, want %s", state, test.state)
			}
			text, code := a.ask("status")
			if !strings.Contains(text, "\nsandbox: "+state+"\n") || code != 0 {
				t.Errorf("the status does not say %q:\n%s", state, text)
			}
			body, _, err := get(a.process, "/v1/status")
			if err != nil {
				t.Fatal(err)
			}
			var reply struct {
				Sandbox struct {
					ABI      int      `json:"landlock_abi"`
					Enforced []string `json:"enforced"`
					Reason   string   `json:"reason"`
				} `json:"sandbox"`
			}
			if err := json.Unmarshal([]byte(body), &reply); err != nil {
				t.Fatal(err)
			}
			if got := reply.Sandbox; !slices.Equal(got.Enforced, test.enforced) || (got.ABI > 0) != (test.enforced != nil) || got.Enforced == nil {
				t.Errorf("/v1/status says %+v, want %q enforced", got, test.enforced)
			}
			if body, _, err := get(a.process, "/metrics"); err != nil || !regexp.MustCompile(`(?m)^process_open_fds [1-9]`).MatchString(body) {
				t.Errorf("the process's own metrics are gone: %v", err)
			}
		})
	}
}

// TestProcessIsHardened: nothing that it executes gains privileges, and other
// processes of its user cannot read its memory, in which the keys are. COMMAND is
// spared both.
func TestProcessIsHardened(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has these")
	}
	s := startServer(t, nil, echo)
	cmd := exec.Command(binary, "forward", "--plain", "--listen", "127.0.0.1:0", "--to", s.addr)
	if os.Geteuid() == 0 { // root may read all: another user tells
		open, err := os.Open(binary)
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		// The folder of the binary is root's alone.
		cmd.Path, cmd.ExtraFiles = "/proc/self/fd/3", []*os.File{open}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Args = append(cmd.Args, "--admin", "")
		cmd.Dir = "/"
	}
	a := startCmd(t, cmd)
	a.addr("forward")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil || !strings.Contains(string(status), "NoNewPrivs:\t1\n") {
		t.Errorf("%v:\n%s\nwant no new privileges", err, status)
	}
	info, err := os.Stat(fmt.Sprintf("/proc/%d/environ", a.cmd.Process.Pid))
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 { // the kernel gives it to root
		t.Errorf("%v, %v; its user can read its memory", info, err)
	}

	file := writeFile(t, "a.yaml", "upstreams: {up: {endpoints: [\""+s.addr+"\"]}}\nlisteners: {front: {listen: \"127.0.0.1:0\", upstream: up}}\n")
	outside := writeFile(t, "outside", "read by COMMAND")
	with := start(t, "run", "-c", file, "--", "sh", "-c", "grep NoNewPrivs /proc/self/status; cat "+outside)
	with.ended(0)
	if got := with.stdout.String(); got != "NoNewPrivs:\t0\nread by COMMAND" {
		t.Errorf("COMMAND printed %q", got)
	}
	required := start(t, "run", "-c", writeFile(t, "b.yaml", "sandbox: {landlock: required}\nupstreams: {up: {endpoints: [\""+s.addr+"\"]}}\nlisteners: {front: {listen: \"127.0.0.1:0\", upstream: up}}\n"), "--", "true")
	required.ended(2)
	required.await(`b.yaml:1:\d+: sandbox.landlock: required, and COMMAND would inherit the sandbox`)
}

// TestReloadAndTheSandbox: a reload refuses a change that the sandbox of the start does
// not allow, and names the key and the fix; the process goes on. An allowed change
// works as without the sandbox.
func TestReloadAndTheSandbox(t *testing.T) {
	t.Parallel()
	s, other := startServer(t, nil, echo), startServer(t, nil, echo)
	keys := newPKI(t)
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	dir, elsewhere := shortDir(t), shortDir(t)
	file := filepath.Join(dir, "ambassador.yaml")
	write := func(upstream, listeners string) {
		t.Helper()
		text := fmt.Sprintf("upstreams: {up: %s}\nlisteners:\n  front: {listen: \"127.0.0.1:0\", upstream: up}\n  path: {listen: \"unix:%s/front\", upstream: up}\n%s", upstream, dir, listeners)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	plain := fmt.Sprintf("{endpoints: [%q]}", s.addr)
	write(plain, "")
	a := start(t, "run", "-c", file)
	needSandbox(t, a)
	live := a.connect("front")
	front := a.addr("front")

	for _, test := range []struct{ name, upstream, listeners, want string }{
		{"a port to listen on", plain, "  more: {listen: \"127.0.0.1:" + port + "\", upstream: up}\n", `listeners.more.listen: listening on port ` + port},
		{"a port to connect to", fmt.Sprintf("{endpoints: [%q]}", other.addr), "", `upstreams.up.endpoints\[0\]: connecting to port \d+`},
		{"any port to connect to", plain + ", d: {dynamic: true}", "  socks: {listen: \"127.0.0.1:0\", socks5: {}, upstream: d}\n", `upstreams.d.dynamic: connecting to any port`},
		{"a file", fmt.Sprintf("{endpoints: [%q], tls: {ca: %q}}", s.addr, keys.file("ca.crt")), "", `upstreams.up.tls.ca: .*ca.crt`},
		{"a socket", plain, "  more: {listen: \"unix:" + elsewhere + "/s\", upstream: up}\n", `listeners.more.listen: ` + elsewhere},
	} {
		write(test.upstream, test.listeners)
		_, stderr, code, err := ask(a.process, "reload")
		want := test.want + ` is outside the sandbox that was set at the start, which can only get tighter; restart, or set sandbox.landlock: off`
		if err != nil || code != 1 || !regexp.MustCompile(want).MatchString(stderr) {
			t.Errorf("%s: exit code %d, %v: %s\nwant %s", test.name, code, err, stderr, want)
		}
		if err := exchange(front, "hello"); err != nil {
			t.Errorf("%s: then %v", test.name, err)
		}
	}
	a.metric("ambassador_reloads_total{result=error}", 5)

	write(plain, "  more: {listen: \"127.0.0.1:0\", upstream: up}\n  sock: {listen: \"unix:"+dir+"/more\", upstream: up, socket: {mode: \"0666\"}}\n")
	if _, code := a.ask("reload"); code != 0 {
		t.Fatal("a port of the system's choice and a socket beside the other are refused")
	}
	for _, name := range []string{"more", "path", "sock"} {
		c := a.connect(name)
		if err := echoed(c, "hello"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := echoed(live, "still"); err != nil {
		t.Errorf("the session from before: %v", err)
	}
	write(plain, "")
	if _, code := a.ask("reload"); code != 0 {
		t.Error("the first configuration is refused")
	}
	if left, _ := filepath.Glob(dir + "/*"); !slices.Equal(left, []string{file, dir + "/front"}) {
		t.Errorf("left in the folder: %q", left)
	}
	write("{endpoints: [\"127.0.0.1:1\"]}", "sandbox: {landlock: \"off\"}\n")
	if _, code := a.ask("reload"); code != 1 {
		t.Error("turning it off took it back")
	}
	a.await(`"msg":"sandbox.landlock has changed, and applies from the next start on"`)
}

// echoed sends a line and expects it back.
func echoed(c net.Conn, line string) error {
	if _, err := fmt.Fprintln(c, line); err != nil {
		return err
	}
	got := make([]byte, len(line)+1)
	if _, err := c.Read(got); err != nil || string(got) != line+"\n" {
		return fmt.Errorf("%q, %v; want %q", got, err, line)
	}
	return nil
}

// TestSecretsAreSwappedInTheSandbox: the ways in which certificates are replaced
// work, and a link that leads out of the sandbox is not followed, which also shows
// from outside that the kernel enforces it: we are root, and may read all.
func TestSecretsAreSwappedInTheSandbox(t *testing.T) {
	t.Parallel()
	ca, err := newAuthority("sandbox")
	if err != nil {
		t.Fatal(err)
	}
	dir, outside := t.TempDir(), t.TempDir()
	issue := func(into, name string) {
		t.Helper()
		p, err := ca.issue(leaf{cn: name, dns: []string{name}})
		if err == nil {
			err = os.MkdirAll(into, 0o700)
		}
		if err == nil {
			err = p.write(into, "tls")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, name+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(dir, "secret") // as Kubernetes mounts it
	issue(secret+"/..1", "k8s-1.test")
	link("..1", secret+"/..data")
	link("..data/tls.crt", secret+"/tls.crt")
	link("..data/tls.key", secret+"/tls.key")
	issue(dir+"/releases/1", "linked-1.test")
	link("releases/1", dir+"/current")
	text := fmt.Sprintf(`
identities:
  k8s: {files: {cert: %[1]s/secret/tls.crt, key: %[1]s/secret/tls.key}}
  linked: {files: {cert: %[1]s/current/tls.crt, key: %[1]s/current/tls.key}}
upstreams: {up: {endpoints: ["127.0.0.1:1"], required: false}}
listeners: {front: {listen: "127.0.0.1:0", upstream: up}}
`, dir)
	a := start(t, "run", "-c", writeFile(t, "a.yaml", text))
	needSandbox(t, a)
	a.addr("front")

	issue(secret+"/..2", "k8s-2.test")
	link("..2", secret+"/..data")
	a.await(`"msg":"identity renewed","identity":"k8s","generation":2,"names":\["dns:k8s-2.test"\]`)
	issue(dir+"/releases/2", "linked-2.test")
	link("releases/2", dir+"/current")
	a.await(`"msg":"identity renewed","identity":"linked","generation":2,"names":\["dns:linked-2.test"\]`)

	issue(outside, "outside.test")
	link(outside, secret+"/..data")
	a.await(`"identity":"k8s".*permission denied`)
	status, _ := a.ask("status")
	if !strings.Contains(status, "dns:k8s-2.test") || strings.Contains(status, "outside.test") {
		t.Errorf("what the link out of the sandbox leads to is used:\n%s", status)
	}
	issue(secret+"/..3", "k8s-3.test")
	link("..3", secret+"/..data")
	a.await(`"msg":"identity renewed","identity":"k8s","generation":3,"names":\["dns:k8s-3.test"\]`)
}
