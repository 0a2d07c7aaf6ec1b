package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// postgres is a real PostgreSQL server on a loopback port, with a data folder
// of its own. Its only rule is the strictest there is: TLS, a client certificate
// whose CN is the user, and SCRAM.
type postgres struct {
	bin  string // folder of the programs
	dir  string // data, keys and socket live below
	port string
	keys *pki
	cred *syscall.Credential // who runs the server; nil: we do
	*process
}

const (
	pgUser     = "app" // the CN of the pki's client
	pgPassword = "correct horse"
	pgReady    = `database system is ready to accept connections`
)

// needPostgres finds the folder of PostgreSQL's programs.
func needPostgres(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("AMBASSADOR_TEST_PGBIN"); dir != "" {
		return dir
	}
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	for i := range dirs {
		dir := dirs[len(dirs)-1-i]
		if hasPrograms(dir, "initdb", "postgres", "psql", "pgbench") {
			return dir
		}
	}
	missing(t, "PostgreSQL with initdb, psql and pgbench (Debian's postgresql)")
	return ""
}

func hasPrograms(dir string, names ...string) bool {
	for _, n := range names {
		if _, err := os.Stat(filepath.Join(dir, n)); err != nil {
			return false
		}
	}
	return true
}

// newPostgres makes a data folder and starts a server on it.
func newPostgres(t testing.TB, keys *pki) *postgres {
	t.Helper()
	p := &postgres{bin: needPostgres(t), dir: shortDir(t), keys: keys}
	if os.Getuid() == 0 {
		p.cred = unprivileged(t)
	}
	err := errors.Join(os.Chmod(p.dir, 0o755), os.Mkdir(p.file("d"), 0o700), os.Mkdir(p.file("s"), 0o700),
		os.WriteFile(p.file("pw"), []byte(pgPassword), 0o644))
	for _, f := range []string{"server.crt", "server.key", "ca.crt"} {
		text, readErr := os.ReadFile(keys.file(f))
		err = errors.Join(err, readErr, os.WriteFile(p.file("s/"+f), text, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	p.give(t, "d", "s", "s/server.crt", "s/server.key", "s/ca.crt")
	initdb := p.command("initdb", "-D", p.file("d"), "-U", pgUser, "-A", "scram-sha-256", "--pwfile", p.file("pw"),
		"-E", "UTF8", "--locale", "C", "--no-sync")
	if text, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, text)
	}
	p.configure(t)
	p.startServer(t)
	return p
}

// clone starts a second server on a copy of this one's data; this one is down
// while it is copied.
func (p *postgres) clone(t testing.TB) *postgres {
	t.Helper()
	need(t, "cp")
	p.stop(t)
	q := *p
	q.dir, q.port = shortDir(t), ""
	if err := os.Chmod(q.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("cp", "-a", p.file("d"), p.file("s"), q.dir).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, text)
	}
	q.configure(t)
	p.startServer(t)
	q.startServer(t)
	return &q
}

func (p *postgres) file(name string) string { return filepath.Join(p.dir, name) }

// configure writes the server's whole configuration.
func (p *postgres) configure(t testing.TB) {
	t.Helper()
	conf := fmt.Sprintf(`
listen_addresses = '127.0.0.1'
unix_socket_directories = '%s'
ssl = on
ssl_cert_file = '%[1]s/server.crt'
ssl_key_file = '%[1]s/server.key'
ssl_ca_file = '%[1]s/ca.crt'
password_encryption = scram-sha-256
fsync = off
log_line_prefix = '%%p '
max_connections = 60
`, p.file("s"))
	const hba = "hostssl all all all scram-sha-256 clientcert=verify-full\n"
	if err := errors.Join(os.WriteFile(p.file("d/postgresql.conf"), []byte(conf), 0o600),
		os.WriteFile(p.file("d/pg_hba.conf"), []byte(hba), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// give hands files to the user that runs the server.
func (p *postgres) give(t testing.TB, names ...string) {
	t.Helper()
	if p.cred == nil {
		return
	}
	for _, n := range names {
		if err := os.Chown(p.file(n), int(p.cred.Uid), int(p.cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
}

// unprivileged is a user that PostgreSQL agrees to run as, unlike root.
func unprivileged(t testing.TB) *syscall.Credential {
	t.Helper()
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	missing(t, "a user postgres or nobody to run PostgreSQL as")
	return nil
}

// command is one of the server's programs, run as the server's user.
func (p *postgres) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(p.bin, program), args...)
	cmd.Dir = p.dir
	if p.cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.cred}
	}
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	return cmd
}

// startServer starts the server, on its port if it has had one, else on a free
// one, and waits until it is ready.
func (p *postgres) startServer(t testing.TB) {
	t.Helper()
	for range 5 {
		port := p.port
		if port == "" {
			var err error
			if port, err = freePort(); err != nil {
				t.Fatal(err)
			}
		}
		// On its stdout PostgreSQL prints nothing, on stderr its log.
		proc, err := launch(p.command("postgres", "-D", p.file("d"), "-p", port))
		if err != nil {
			t.Fatal(err)
		}
		p.process = proc
		t.Cleanup(func() { stopPostgres(proc) })
		if _, err = proc.stderr.awaitAfter(0, regexp.MustCompile(pgReady), patience, proc.exited); err == nil {
			p.port = port
			return
		}
		stopPostgres(proc)
		if !strings.Contains(proc.stderr.String(), "Address already in use") {
			t.Fatalf("postgres: %v\n%s", err, proc.stderr)
		}
	}
	t.Fatal("postgres found no free port")
}

// stop is the fast shutdown: sessions are told and ended.
func (p *postgres) stop(t testing.TB) {
	t.Helper()
	if err := stopPostgres(p.process); err != nil {
		t.Fatal(err)
	}
}

// stopPostgres asks for a fast shutdown, and does not take no for an answer.
func stopPostgres(p *process) error {
	p.signal(syscall.SIGINT)
	if _, err := p.exit(patience); err != nil {
		p.signal(syscall.SIGQUIT) // which also ends its children, unlike SIGKILL
		_, quitErr := p.exit(patience)
		return errors.Join(err, quitErr)
	}
	return nil
}

func (p *postgres) addr() string { return "127.0.0.1:" + p.port }

// client prepares one of PostgreSQL's client programs for a server at addr
// ("HOST:PORT" or a unix listener's path); sslmode is libpq's.
func (p *postgres) client(addr, sslmode, program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(p.bin, program), args...)
	host, port, _ := strings.Cut(addr, ":")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=/nonexistent", "PGCONNECT_TIMEOUT=20",
		"PGHOST=" + host, "PGPORT=" + port, "PGUSER=" + pgUser, "PGPASSWORD=" + pgPassword, "PGDATABASE=postgres"}
	if sslmode != "" {
		cmd.Env = append(cmd.Env, "PGSSLMODE="+sslmode)
	}
	return cmd
}

// direct is client with TLS and the client certificate, past the ambassador.
func (p *postgres) direct(program string, args ...string) *exec.Cmd {
	cmd := p.client(p.addr(), "verify-full", program, args...)
	cmd.Env = append(cmd.Env, "PGSSLCERT="+p.keys.file("client.crt"), "PGSSLKEY="+p.keys.file("client.key"),
		"PGSSLROOTCERT="+p.keys.file("ca.crt"))
	return cmd
}

// psql is the flags for exactly the answer and nothing else.
func psql(sql ...string) []string {
	args := []string{"-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"}
	for _, s := range sql {
		args = append(args, "-c", s)
	}
	return args
}

// run runs a client program to its end and returns what it printed.
func run(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	text, stderr, err := try(cmd)
	if err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(cmd.Path), err, tail(stderr, 4<<10))
	}
	return text
}

// try is run for a program that may fail.
func try(cmd *exec.Cmd) (stdout, stderr string, err error) {
	var errText bytes.Buffer
	cmd.Stderr = &errText
	cmd.WaitDelay = 5 * time.Second // as in launch; one is too short on a busy machine
	text, err := cmd.Output()
	return strings.TrimRight(string(text), "\n"), errText.String(), err
}
