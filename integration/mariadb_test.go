package integration

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// mariadb is a MariaDB server with a data folder of its own.
type mariadb struct {
	*daemon
	keys *pki // nil: the plaintext twin
}

// mariadbUsers are the accounts; %s is what they require of a connection.
const mariadbUsers = `
create database db;
create user native@'127.0.0.1' identified via mysql_native_password using password('secret') require %[1]s;
create user modern@'127.0.0.1' identified via ed25519 using password('secret') require %[1]s;
grant all on *.* to native@'127.0.0.1';
grant all on *.* to modern@'127.0.0.1';
`

// newMariaDB starts a server that takes only TLS, and of our accounts only with
// our certificate; without keys it takes no TLS.
func newMariaDB(t testing.TB, keys *pki) *mariadb {
	t.Helper()
	server, install := sbin(t, "mariadbd"), sbin(t, "mariadb-install-db")
	need(t, "mariadb", "mariadb-dump", "mariadb-slap")
	d := &mariadb{daemon: newDaemon(t), keys: keys}
	who := "root"
	if os.Getuid() == 0 {
		who = "mysql"
		d.mkdir(t, who, "data", "s")
	} else {
		d.mkdir(t, "", "data", "s")
	}
	run(t, exec.Command(install, "--no-defaults", "--datadir="+d.file("data"), "--tmpdir="+d.file("s"), "--user="+who, "--auth-root-authentication-method=normal",
		"--skip-test-db", "--innodb-log-file-size=8M", "--innodb-buffer-pool-size=32M"))
	args := []string{"--no-defaults", "--datadir=" + d.file("data"), "--tmpdir=" + d.file("s"), "--user=" + who, "--bind-address=127.0.0.1", "--port=" + d.port,
		"--socket=" + d.file("s/sock"), "--pid-file=" + d.file("s/pid"), "--skip-name-resolve", "--plugin-load-add=auth_ed25519", "--log-warnings=2",
		"--max-allowed-packet=128M", "--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=8M", "--innodb-buffer-pool-size=32M", "--skip-innodb-doublewrite",
		"--performance-schema=off", "--skip-ssl"}
	require := "none"
	if keys != nil {
		require = "subject '/CN=app'"
		args = append(args[:len(args)-1], "--ssl-cert="+d.key(t, "s", "server.crt", who), "--ssl-key="+d.key(t, "s", "server.key", who),
			"--ssl-ca="+d.key(t, "s", "ca.crt", who), "--require-secure-transport=ON")
	}
	d.command = func() *exec.Cmd { return exec.Command(server, args...) }
	d.start(t)
	run(t, d.client("", "root", "-e", fmt.Sprintf(mariadbUsers, require)))
	return d
}

// key copies one of the pki's files into a folder where the server can read it.
func (d *mariadb) key(t testing.TB, folder, name, owner string) string {
	t.Helper()
	text, err := os.ReadFile(d.keys.file(name))
	if err == nil {
		err = os.WriteFile(d.file(folder+"/"+name), text, 0o600)
	}
	if err == nil && os.Getuid() == 0 {
		uid, gid := ids(t, owner)
		err = os.Chown(d.file(folder+"/"+name), uid, gid)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d.file(folder + "/" + name)
}

// client is the mariadb program, on a TCP port, or on the server's own unix
// socket if port is empty.
func (d *mariadb) client(port, user string, args ...string) *exec.Cmd {
	return d.program("mariadb", port, user, append([]string{"--batch"}, args...)...)
}

func (d *mariadb) program(name, port, user string, args ...string) *exec.Cmd {
	line := []string{"--no-defaults", "--user=" + user, "--skip-ssl"}
	if port == "" {
		line = append(line, "--socket="+d.file("s/sock"))
	} else {
		line = append(line, "--protocol=tcp", "--host=127.0.0.1", "--port="+port, "--password=secret")
	}
	cmd := exec.Command(name, append(line, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	return cmd
}

// TestMariaDB proves that clients which know no TLS work against a MariaDB that
// takes nothing else and asks for our certificate, as they do without TLS.
func TestMariaDB(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	db, twin := newMariaDB(t, keys), newMariaDB(t, nil)
	a, port := front(t, db.daemon, keys, "--starttls", "mysql")
	m := mariadbThrough{db, twin, a, port}
	t.Run("together", func(t *testing.T) {
		t.Run("tls", m.tls)
		t.Run("logins", m.logins)
		t.Run("statements", m.statements)
		t.Run("blob", m.blob)
		t.Run("slap", m.slap)
		t.Run("dump", m.dump)
		t.Run("client wants TLS", m.wantsTLS)
		t.Run("unix socket", m.unixSocket)
		t.Run("another certificate", func(t *testing.T) {
			rejected(t, db.daemon, keys, "mysql", "upstream_tls_rejected", func(port string) *exec.Cmd {
				return db.client(port, "native", "-e", "select 1")
			})
		})
	})
	// The server resets most sessions that their client has ended: that is no alarm.
	if m := regexp.MustCompile(`"reason":"upstream_reset".*"first_close":"downstream"`).FindString(a.stderr.String()); m != "" {
		t.Errorf("a normal end is recorded as %s", m)
	}
	a.await(`"reason":"closed","cause":"the client closed first, and the server`)
	firstContact(t, db.daemon, keys, "", "", "MySQL or MariaDB greeting; set starttls: mysql .forward: --starttls mysql")
	firstContact(t, db.daemon, keys, "smtp", "", "--starttls mysql")
	t.Run("restart", m.restart)
}

// mariadbThrough is a server, its twin, and an ambassador before the server.
type mariadbThrough struct {
	*mariadb
	twin    *mariadb
	a       *ambassador
	through string // its port
}

// both runs the same client before the twin and through the ambassador.
func (m mariadbThrough) both(t *testing.T, user string, args ...string) string {
	t.Helper()
	return twins(t, m.client(m.twin.port, user, args...), m.client(m.through, user, args...))
}

// tls: the server itself says that the session is encrypted and whose
// certificate it saw, and takes nobody in plaintext.
func (m mariadbThrough) tls(t *testing.T) {
	t.Parallel()
	got := run(t, m.client(m.through, "native", "-N", "-e", "show status like 'Ssl_version'; select current_user()"))
	if want := "Ssl_version\tTLSv1.3\nnative@127.0.0.1"; got != want {
		t.Errorf("the server says %q, want %q", got, want)
	}
	if _, stderr, err := try(m.client(m.port, "native", "-e", "select 1")); err == nil {
		t.Errorf("the server takes plaintext: %s", stderr)
	}
}

// logins: native password, the switch to ed25519, both compressed, and the
// server's own words about a wrong password and a user who is not there.
func (m mariadbThrough) logins(t *testing.T) {
	t.Parallel()
	for _, user := range []string{"native", "modern", "nobody"} {
		for _, flags := range [][]string{{}, {"--compress"}, {"--password=wrong"}, {"--default-auth=client_ed25519"}, {"no_such_database"}} {
			got := m.both(t, user, append(flags, "-e", "select current_user(); show status like 'Compression'")...)
			if user == "modern" && len(flags) == 0 && !strings.Contains(got, "modern@127.0.0.1") {
				t.Errorf("ed25519: %s", got)
			}
		}
	}
}

// statements: prepared ones, several in one packet, an error in the middle, and a
// login on a connection that has one already.
func (m mariadbThrough) statements(t *testing.T) {
	t.Parallel()
	m.both(t, "native", "--force", "-v", "-e", `
		use db; create table p (a int primary key, b text);
		prepare s from 'insert into p values (?, ?)'; set @a = 1, @b = repeat('x', 100000);
		execute s using @a, @b; execute s using @a, @b;
		select a, length(b), md5(b) from p; select * from nowhere; select benchmark(1000, md5('x'));`)
	m.both(t, "native", "-e", "select 1; change user; select 2")
}

// blob: 64 MiB in one value, there and back.
func (m mariadbThrough) blob(t *testing.T) {
	t.Parallel()
	n := 16 << 20
	if long() {
		n = 64 << 20
	}
	sql := fmt.Sprintf("create table blobs (b longblob); insert into blobs values (repeat('0123456789abcdef', %d)); select md5(b), length(b) from blobs; ", n/16)
	out := m.both(t, "native", "--max-allowed-packet=128M", "db", "-e", sql+"select b from blobs")
	if len(out) < n {
		t.Errorf("%d bytes came back, want %d", len(out), n)
	}
	value := m.file("value.sql")
	text := fmt.Sprintf("select length('%s') as n;\n", strings.Repeat("0123456789abcdef", n/16))
	if err := os.WriteFile(value, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := m.both(t, "native", "--max-allowed-packet=128M", "-e", "source "+value), fmt.Sprintf("exit code 0\nn\n%d\n", n); got != want {
		t.Errorf("the server counts %.100q, want %q", got, want)
	}
}

// slap: sixteen clients at once, each of many connections.
func (m mariadbThrough) slap(t *testing.T) {
	t.Parallel()
	queries := "1600"
	if long() {
		queries = "40000"
	}
	run(t, m.program("mariadb-slap", m.through, "modern", "--concurrency=16", "--number-of-queries="+queries, "--auto-generate-sql",
		"--auto-generate-sql-write-number=200", "--create-schema=slap", "--detach=10"))
}

// dump: a database comes out as from the twin, goes in again, and comes out the
// same.
func (m mariadbThrough) dump(t *testing.T) {
	t.Parallel()
	fill := `create database d; use d; create table t (a int primary key auto_increment, b varchar(200), c blob);
		insert into t (b, c) select md5(seq), unhex(repeat(md5(seq), 8)) from seq_1_to_20000;`
	args := []string{"--skip-dump-date", "--skip-comments", "--hex-blob", "d"}
	run(t, m.twin.client(m.twin.port, "native", "-e", fill))
	run(t, m.client(m.through, "native", "-e", fill))
	out := twins(t, m.program("mariadb-dump", m.twin.port, "native", args...), m.program("mariadb-dump", m.through, "native", args...))
	_, out, _ = strings.Cut(out, "\n") // the exit code
	in := m.client(m.through, "native", "-e", "create database e")
	run(t, in)
	in = m.client(m.through, "native", "e")
	in.Stdin = strings.NewReader(out)
	run(t, in)
	args[len(args)-1] = "e"
	if again := run(t, m.program("mariadb-dump", m.through, "native", args...)); again != strings.TrimRight(out, "\n") {
		t.Errorf("a dump of %d bytes came back as one of %d, or with others", len(out), len(again))
	}
}

// wantsTLS: a client that insists on TLS fails by itself, and the record says why.
func (m mariadbThrough) wantsTLS(t *testing.T) {
	t.Parallel()
	cmd := m.client(m.through, "native", "--ssl-verify-server-cert", "-e", "select 1")
	if _, stderr, err := try(cmd); err == nil || !strings.Contains(stderr, "SSL is required") {
		t.Errorf("%v, %q; want the client's own refusal", err, stderr)
	}
	m.a.await(`"stage":"dialogue","reason":"closed","cause":".*--skip-ssl`)
}

// unixSocket: the listener that a client trusts with its password itself.
func (m mariadbThrough) unixSocket(t *testing.T) {
	t.Parallel()
	path := shortDir(t) + "/mysql.sock"
	a := start(t, append([]string{"forward", "--listen", "unix:" + path, "--to", m.addr(), "--starttls", "mysql", "--server-name", "localhost"}, m.keys.client()...)...)
	a.addr("forward")
	cmd := exec.Command("mariadb", "--no-defaults", "--skip-ssl", "--user=modern", "--password=secret", "--socket="+path, "-N", "-e", "select current_user()")
	if got := run(t, cmd); got != "modern@127.0.0.1" {
		t.Errorf("the server says %q", got)
	}
}

// restart: while the server is down its clients are told why in their own
// protocol; when it is back, new sessions work.
func (m mariadbThrough) restart(t *testing.T) {
	m.stop(t)
	_, stderr, err := try(m.client(m.through, "native", "-e", "select 1"))
	if want := "ERROR 1043"; err == nil || !strings.Contains(stderr, want) || !strings.Contains(stderr, "refused") {
		t.Errorf("while the server is down: %v, %q; want %s with the reason", err, stderr, want)
	}
	m.a.await(`"stage":"dial","reason":"refused"`)
	m.start(t)
	if got := run(t, m.client(m.through, "native", "-N", "-e", "select 1")); got != "1" {
		t.Errorf("after the restart: %q", got)
	}
	if log := m.stderr.String(); strings.Contains(log, "[ERROR]") || strings.Contains(log, "Got packets out of order") {
		t.Errorf("the server complains:\n%s", tail(log, 4<<10))
	}
}
