package integration

import (
	"crypto/tls"
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
