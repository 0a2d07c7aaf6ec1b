package integration

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs testdata/*.txtar: the built binary on the path, real nc, and
// the commands of scriptCommands. Each script says what it proves.
func TestScripts(t *testing.T) {
	needNetcat(t)
	need(t, "sh", "head", "sha256sum", "stat", "cut", "cmp")
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setScene,
		Cmds:                scriptCommands,
		Condition:           scriptCondition,
	})
}

// needNetcat needs OpenBSD's netcat: the others do not half-close on -N.
func needNetcat(t testing.TB) {
	t.Helper()
	need(t, "nc")
	text, _ := exec.Command("nc", "-h").CombinedOutput()
	if !strings.Contains(string(text), "-N") {
		missing(t, "OpenBSD netcat (nc -N; Debian's netcat-openbsd)")
	}
}

func scriptCondition(name string) (bool, error) {
	switch name {
	case "root":
		return os.Getuid() == 0, nil
	case "long":
		return long(), nil
	}
	return false, fmt.Errorf("unknown condition %q", name)
}

// scene is what one script has started.
type scene struct {
	dir       string
	pki       *pki
	processes map[string]*process
	servers   map[string]*server
	vars      map[string]bool // names for env
}

type sceneKey struct{}

// setScene gives a script its folders: pki/ with certificates, run/ for admin
// sockets, bin/ with the binary.
func setScene(e *testscript.Env) error {
	s := &scene{dir: e.WorkDir, processes: map[string]*process{}, servers: map[string]*server{}, vars: map[string]bool{}}
	e.Values[sceneKey{}] = s
	var err error
	if s.pki, err = writePKI(filepath.Join(e.WorkDir, "pki")); err != nil {
		return err
	}
	bin, run := filepath.Join(e.WorkDir, "bin"), filepath.Join(e.WorkDir, "run")
	err = errors.Join(os.Mkdir(bin, 0o755), os.Mkdir(run, 0o700), os.Symlink(binary, filepath.Join(bin, "ambassador")))
	e.Setenv("PATH", bin+":"+e.Getenv("PATH"))
	e.Setenv("RUNTIME_DIRECTORY", run)
	e.Setenv("GORACE", "halt_on_error=1")
	e.Setenv("LATE", late().String())
	e.Setenv("LATE_SECONDS", strconv.Itoa(int(late().Seconds())))
	for _, v := range e.Vars {
		name, _, _ := strings.Cut(v, "=")
		s.vars[name] = true
	}
	e.Defer(func() { s.end(e.T()) })
	return err
}

// end stops what the script left running.
func (s *scene) end(t testscript.T) {
	for name, p := range s.processes {
		if err := p.end(); err != nil {
			t.Log(name, err)
			t.FailNow()
		}
	}
	for _, srv := range s.servers {
		srv.close()
	}
}

func (s *scene) process(ts *testscript.TestScript, name string) *process {
	p := s.processes[name]
	if p == nil {
		ts.Fatalf("nothing called %s was started", name)
	}
	return p
}

// usage ends a script that calls a command wrongly.
func usage(ts *testscript.TestScript, ok bool, form string) {
	if !ok {
		ts.Fatalf("usage: %s", form)
	}
}

// on makes a script command of a method that knows the scene. The command
// cannot be negated.
func onScene(form string, min int, f func(*scene, *testscript.TestScript, []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		usage(ts, !neg && len(args) >= min, form)
		f(ts.Value(sceneKey{}).(*scene), ts, args)
	}
}

var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	// start NAME PROGRAM ARG…: runs it beside the script, its stdin open.
	"start": onScene("start NAME PROGRAM ARG…", 2, (*scene).start),
	// say NAME TEXT: writes a line to its stdin.
	"say": onScene("say NAME TEXT", 2, (*scene).say),
	// hangup NAME: ends its stdin.
	"hangup": onScene("hangup NAME", 1, (*scene).hangup),
	// listening NAME LISTENER VAR: waits for the line and sets $VAR, $VAR_PORT.
	"listening": onScene("listening NAME LISTENER VAR", 3, (*scene).listening),
	// await NAME stdout|stderr RE: waits until it has printed that.
	"await": onScene("await NAME stdout|stderr RE", 3, (*scene).await),
	// never NAME stdout|stderr RE: it has not printed that so far.
	"never": onScene("never NAME stdout|stderr RE", 3, (*scene).never),
	// save NAME stdout|stderr FILE: what it has printed so far.
	"save": onScene("save NAME stdout|stderr FILE", 3, (*scene).save),
	// signal NAME TERM|INT|HUP|KILL
	"signal": onScene("signal NAME TERM|INT|HUP|KILL", 2, (*scene).signal),
	// ended NAME CODE [WITHIN]: waits for its end.
	"ended": onScene("ended NAME CODE [WITHIN]", 2, (*scene).ended),
	// running NAME: it has not ended.
	"running": onScene("running NAME", 1, (*scene).running),
	// metric NAME SERIES MIN: waits until the sum of the matching series is at least that.
	"metric": onScene("metric NAME SERIES MIN", 3, (*scene).metric),
	// ending NAME CLIENT STAGE REASON: the same ending in the log, /metrics and `why`.
	"ending": onScene("ending NAME CLIENT STAGE REASON", 4, (*scene).ending),
	// server NAME KIND [key=value…]: an upstream; sets $NAME, $NAME_PORT.
	"server": onScene("server NAME KIND [at=ADDR] [tls=CERT] [clientca=CA] [delay=D] [size=N] [text=T]", 2, (*scene).server),
	// received NAME TEXT: waits until the server has seen that.
	"received": onScene("received NAME TEXT", 2, (*scene).received),
	// unserve NAME: ends the server.
	"unserve": onScene("unserve NAME", 1, (*scene).unserve),
	// freeport VAR: a port for programs that cannot choose one.
	"freeport": onScene("freeport VAR", 1, (*scene).freeport),
	// exits CODE PROGRAM ARG…: like exec, with its exit code.
	"exits": onScene("exits CODE PROGRAM ARG…", 2, (*scene).exits),
}

func (s *scene) start(ts *testscript.TestScript, args []string) {
	if s.processes[args[0]] != nil {
		ts.Fatalf("%s is already taken", args[0])
	}
	path, err := exec.LookPath(args[1])
	if args[1] == "ambassador" {
		path, err = filepath.Join(s.dir, "bin", "ambassador"), nil
	}
	ts.Check(err)
	cmd := exec.Command(path, args[2:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = s.env(ts)
	// A pipe of our own: that of StdinPipe is closed once the process has ended, and a
	// program may end before the script hangs up.
	in, out, err := os.Pipe()
	ts.Check(err)
	ts.Defer(func() { out.Close() })
	cmd.Stdin = in
	p, err := launch(cmd)
	in.Close()
	ts.Check(err)
	p.stdin = out
	s.processes[args[0]] = p
}

// env is the environment of the processes of start. The script's own `env`
// lines are not in it: testscript keeps them to itself.
func (s *scene) env(ts *testscript.TestScript) []string {
	var env []string
	for name := range s.vars {
		env = append(env, name+"="+ts.Getenv(name))
	}
	return env
}

// set sets a variable for the script and for the processes it starts.
func (s *scene) set(ts *testscript.TestScript, name, value string) {
	s.vars[name] = true
	ts.Setenv(name, value)
}

func (s *scene) say(ts *testscript.TestScript, args []string) {
	_, err := fmt.Fprintln(s.process(ts, args[0]).stdin, args[1])
	ts.Check(err)
}

func (s *scene) hangup(ts *testscript.TestScript, args []string) {
	ts.Check(s.process(ts, args[0]).stdin.Close())
}

func (s *scene) listening(ts *testscript.TestScript, args []string) {
	addr, err := s.process(ts, args[0]).listening(args[1])
	ts.Check(err)
	s.setAddr(ts, args[2], addr)
}

// setAddr sets $NAME and, where the address has one, $NAME_PORT.
func (s *scene) setAddr(ts *testscript.TestScript, name, addr string) {
	s.set(ts, name, addr)
	if _, port, err := net.SplitHostPort(addr); err == nil {
		s.set(ts, name+"_PORT", port)
	}
}

func (s *scene) stream(ts *testscript.TestScript, name, stream string) *output {
	p := s.process(ts, name)
	switch stream {
	case "stdout":
		return p.stdout
	case "stderr":
		return p.stderr
	}
	ts.Fatalf("%q is neither stdout nor stderr", stream)
	return nil
}

func (s *scene) await(ts *testscript.TestScript, args []string) {
	re, err := regexp.Compile("(?m)" + args[2])
	ts.Check(err)
	o := s.stream(ts, args[0], args[1])
	within := patience + late()
	if _, err := o.awaitAfter(0, re, within, s.process(ts, args[0]).exited); err != nil {
		ts.Fatalf("%s: %v; it printed:\n%s", args[0], err, o)
	}
}

func (s *scene) never(ts *testscript.TestScript, args []string) {
	o := s.stream(ts, args[0], args[1])
	if m := regexp.MustCompile("(?m)" + args[2]).FindString(o.String()); m != "" {
		ts.Fatalf("%s printed %q:\n%s", args[0], m, o)
	}
}

func (s *scene) save(ts *testscript.TestScript, args []string) {
	text := s.stream(ts, args[0], args[1]).String()
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(text), 0o644))
}

func (s *scene) signal(ts *testscript.TestScript, args []string) {
	signals := map[string]os.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "KILL": syscall.SIGKILL}
	sig, ok := signals[args[1]]
	usage(ts, ok, "signal NAME TERM|INT|HUP|KILL")
	ts.Check(s.process(ts, args[0]).signal(sig))
}

func (s *scene) ended(ts *testscript.TestScript, args []string) {
	within := patience
	if len(args) > 2 {
		var err error
		within, err = time.ParseDuration(args[2])
		ts.Check(err)
	}
	p := s.process(ts, args[0])
	code, err := p.exit(within)
	if err != nil {
		ts.Fatalf("%v; its stderr:\n%s", err, p.stderr)
	}
	if strconv.Itoa(code) != args[1] {
		ts.Fatalf("%s ended with %d, want %s; its stderr:\n%s", args[0], code, args[1], p.stderr)
	}
}

func (s *scene) running(ts *testscript.TestScript, args []string) {
	if p := s.process(ts, args[0]); !p.running() {
		ts.Fatalf("%s has ended; its stderr:\n%s", args[0], p.stderr)
	}
}

func (s *scene) metric(ts *testscript.TestScript, args []string) {
	want, err := strconv.ParseFloat(args[2], 64)
	ts.Check(err)
	ts.Check(awaitMetric(s.process(ts, args[0]), args[1], want))
}

func (s *scene) ending(ts *testscript.TestScript, args []string) {
	p := s.process(ts, args[0])
	if _, err := ending(p, peer{client: args[1]}, args[2], args[3]); err != nil {
		ts.Fatalf("%v\nthe log:\n%s", err, p.stderr)
	}
}

func (s *scene) server(ts *testscript.TestScript, args []string) {
	opts := map[string]string{"at": "127.0.0.1:0"}
	for _, a := range args[2:] {
		k, v, _ := strings.Cut(a, "=")
		opts[k] = v
	}
	var cfg *tls.Config
	if cert := opts["tls"]; cert != "" {
		var err error
		cfg, err = s.pki.server(cert, opts["clientca"])
		ts.Check(err)
	}
	srv, err := serveAt(opts["at"], cfg, s.handler(ts, args[0], args[1], opts))
	ts.Check(err)
	if old := s.servers[args[0]]; old != nil {
		old.close()
	}
	s.servers[args[0]] = srv
	s.setAddr(ts, args[0], srv.addr)
}

// handler chooses what a server does with a connection.
func (s *scene) handler(ts *testscript.TestScript, name, kind string, opts map[string]string) func(*server, duplex) {
	switch kind {
	case "echo":
		return echoLines
	case "silent":
		return silent
	case "reset":
		return resetter
	case "end-first":
		return endFirst
	case "speaks-first":
		return speaksFirst(opts["text"] + "\n")
	case "checksum":
		delay, err := time.ParseDuration(opts["delay"])
		ts.Check(err)
		return checksum(delay)
	case "pour":
		n, err := strconv.ParseInt(opts["size"], 10, 64)
		ts.Check(err)
		h := sha256.New()
		io.CopyN(h, noise(uint64(n)), n)
		s.set(ts, name+"_SHA256", fmt.Sprintf("%x", h.Sum(nil)))
		return pour(n)
	}
	ts.Fatalf("unknown kind of server %q", kind)
	return nil
}

func (s *scene) received(ts *testscript.TestScript, args []string) {
	srv := s.servers[args[0]]
	usage(ts, srv != nil, "received NAME TEXT")
	ts.Check(srv.received(args[1], patience+late()))
}

func (s *scene) unserve(ts *testscript.TestScript, args []string) {
	srv := s.servers[args[0]]
	usage(ts, srv != nil, "unserve NAME")
	srv.close()
}

func (s *scene) freeport(ts *testscript.TestScript, args []string) {
	port, err := freePort()
	ts.Check(err)
	s.set(ts, args[0], port)
}

func (s *scene) exits(ts *testscript.TestScript, args []string) {
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}
