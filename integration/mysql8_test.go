package integration

import (
	"crypto/tls"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// mysql8Greeting is MySQL 8's: protocol 10, TLS among its capabilities, and
// caching_sha2_password, whose client part MariaDB's client has too.
const mysql8Greeting = "\x0a8.0.36\x00\x07\x00\x00\x00abcdefgh\x00\x05\xae\xff\x02\x00\x08\x00\x15" +
	"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00abcdefghijkl\x00caching_sha2_password\x00"

// mysql8 is a server up to its login, with an empty cache: it requires the password
// itself, because its connection has TLS, and accepts every command after it.
// There is no MySQL 8 in Debian.
func mysql8(cfg *tls.Config) func(*server, duplex) {
	return func(s *server, c duplex) {
		sendMySQL(c, 0, mysql8Greeting)
		if sequence, request, err := readMySQL(c); err != nil || sequence != 1 || len(request) != 32 {
			s.report("no request for TLS")
			return
		}
		conn := tls.Server(c, cfg)
		if _, _, err := readMySQL(conn); err != nil {
			s.report("no login: " + err.Error())
			return
		}
		sendMySQL(conn, 3, "\x01\x04")
		_, password, err := readMySQL(conn)
		if err != nil {
			s.report("no password: " + err.Error())
			return
		}
		s.report("password " + password)
		if password != "secret\x00" {
			sendMySQL(conn, 5, "\xff\x15\x04#28000Access denied for user 'app'")
			return
		}
		for sequence := byte(5); err == nil; sequence = 1 {
			sendMySQL(conn, sequence, "\x00\x00\x00\x02\x00\x00\x00")
			_, _, err = readMySQL(conn)
		}
	}
}

func sendMySQL(w io.Writer, sequence byte, body string) {
	w.Write(append([]byte{byte(len(body)), byte(len(body) >> 8), 0, sequence}, body...))
}

func readMySQL(r io.Reader) (sequence byte, body string, err error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return 0, "", err
	}
	text := make([]byte, int(head[0])|int(head[1])<<8|int(head[2])<<16)
	_, err = io.ReadFull(r, text)
	return head[3], string(text), err
}

// TestMySQLFullAuthentication proves the documented behaviour for MySQL 8: by TCP a
// client is told what to do, and by a unix socket it logs in.
func TestMySQLFullAuthentication(t *testing.T) {
	t.Parallel()
	need(t, "mariadb")
	keys := newPKI(t)
	srv := startServer(t, nil, mysql8(keys.mtls(t)))
	line := []string{"--no-defaults", "--skip-ssl", "--user=app", "--password=secret", "--batch", "-e", "do 1"}
	flags := append([]string{"forward", "--to", srv.addr, "--starttls", "mysql", "--server-name", "localhost"}, keys.client()...)

	a := start(t, append(flags, "--listen", "127.0.0.1:0")...)
	_, port, _ := strings.Cut(a.addr("forward"), ":")
	_, stderr, err := try(exec.Command("mariadb", append(line, "--protocol=tcp", "--host=127.0.0.1", "--port="+port)...))
	if err == nil || !strings.Contains(stderr, "unix-socket listener of the ambassador") {
		t.Errorf("by TCP: %v, %q; want to be told of a unix-socket listener", err, stderr)
	}
	a.await(`"reason":"bad_greeting","cause":".*unix-socket listener`)

	path := shortDir(t) + "/mysql.sock"
	b := start(t, append(flags, "--listen", "unix:"+path)...)
	b.addr("forward")
	run(t, exec.Command("mariadb", append(line, "--socket="+path)...))
	if err := srv.received("password secret", patience); err != nil {
		t.Error(err)
	}
}

// mysqlSHA256 is a server whose user has sha256_password. As MySQL's, it takes only the
// password itself, because its connection has TLS. MariaDB has no such plugin.
func mysqlSHA256(cfg *tls.Config) func(*server, duplex) {
	return func(s *server, c duplex) {
		sendMySQL(c, 0, mysql8Greeting)
		if sequence, request, err := readMySQL(c); err != nil || sequence != 1 || len(request) != 32 {
			s.report("no request for TLS")
			return
		}
		conn := tls.Server(c, cfg)
		if _, _, err := readMySQL(conn); err != nil {
			s.report("no login: " + err.Error())
			return
		}
		sendMySQL(conn, 3, "\xfesha256_password\x00abcdefghabcdefghijkl\x00")
		if _, password, err := readMySQL(conn); err != nil || password != "secret\x00" {
			sendMySQL(conn, 5, "\xff\x15\x04#28000Access denied for user 'app'")
			return
		}
		s.report("logged in")
		sendMySQL(conn, 5, "\x00\x00\x00\x02\x00\x00\x00")
		readMySQL(conn)
	}
}

// TestMySQLSHA256 proves that a client whose user has sha256_password is told what to do,
// instead of that its password is wrong, and that a probe logs in.
func TestMySQLSHA256(t *testing.T) {
	t.Parallel()
	need(t, "mariadb")
	keys := newPKI(t)
	srv := startServer(t, nil, mysqlSHA256(keys.mtls(t)))
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners: {front: {listen: "127.0.0.1:0", upstream: db}}
upstreams:
  db:
    endpoints: ["%s"]
    starttls: mysql
    health: {user: app, password_file: %s}
    tls: {identity: me, server_name: localhost, ca: %s}
identities: {me: {files: {cert: %s, key: %s}}}
`, srv.addr, writeFile(t, "password", "secret"), keys.file("ca.crt"), keys.file("client.crt"), keys.file("client.key"))))
	_, port, _ := strings.Cut(a.addr("front"), ":")
	if err := srv.received("logged in", patience); err != nil {
		t.Error(err)
	}
	_, stderr, err := try(exec.Command("mariadb", "--no-defaults", "--skip-ssl", "--user=app", "--password=secret", "--batch", "-e", "do 1",
		"--protocol=tcp", "--host=127.0.0.1", "--port="+port))
	if err == nil || !strings.Contains(stderr, "let the user have caching_sha2_password") {
		t.Errorf("by TCP: %v, %q", err, stderr)
	}
	a.await(`"reason":"bad_greeting","cause":".*sha256_password wants the password itself.*let the user have caching_sha2_password`)
}
