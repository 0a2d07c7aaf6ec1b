package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// startPair runs the two examples of a pair before an upstream, with certificates of
// the CA in dir, and gives where the client's side listens.
func startPair(t *testing.T, dir, ca, fingerprint, upstream string) (addr string, server *ambassador) {
	t.Helper()
	run := func(example string, edit ...string) *ambassador {
		text, err := os.ReadFile(filepath.Join("../cmd/ambassador/examples", example))
		if err != nil {
			t.Fatal(err)
		}
		edit = append(edit, "127.0.0.1:9000", ca, "ca/provisioner", filepath.Join(dir, "ca/provisioner"))
		cmd := exec.Command(binary, "run", "-c", writeFile(t, example, strings.NewReplacer(edit...).Replace(string(text))))
		cmd.Env = append(os.Environ(), "CA="+fingerprint)
		return startCmd(t, cmd)
	}
	server = run("pair-server.yaml", "127.0.0.1:8000", upstream, "127.0.0.1:6000", "127.0.0.1:0")
	client := run("pair-client.yaml", "127.0.0.1:6000", server.addr("clients"), "127.0.0.1:5000", "127.0.0.1:0")
	for _, a := range []*ambassador{server, client} {
		if _, code := a.ask("wait"); code != 0 {
			t.Fatal("not ready")
		}
	}
	return client.addr("app"), server
}

// TestPair proves that the README's two ambassadors work, with identities of one
// `ambassador ca`: netcat and psql work as if connected directly.
func TestPair(t *testing.T) {
	t.Parallel()
	needNetcat(t)
	dir := t.TempDir()
	ca := start(t, "ca", "--listen", "127.0.0.1:0", "--storage", filepath.Join(dir, "ca"))
	ca.addr("ca")
	m, err := ca.stdout.awaitAfter(0, regexp.MustCompile(`fingerprint  (\S+)\n`), patience, ca.exited)
	if err != nil {
		t.Fatal(err)
	}
	fingerprint := m[1]
	t.Run("netcat", func(t *testing.T) {
		t.Parallel()
		up := startServer(t, nil, echo)
		addr, server := startPair(t, dir, ca.addr("ca"), fingerprint, up.addr)
		if _, answer := netcat(t, addr, "hello\n"); answer != "hello\n" {
			t.Errorf("nc says %q", answer)
		}
		server.await(`"listener":"clients",.*"principal":"dns:client.internal",.*"reason":"closed",.*"first_close":"downstream"`)
	})
	t.Run("psql", func(t *testing.T) {
		t.Parallel()
		db := newPostgres(t, newPKI(t))
		if err := os.WriteFile(db.file("d/pg_hba.conf"), []byte("host all all all scram-sha-256\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		db.stop(t)
		db.startServer(t)
		addr, _ := startPair(t, dir, ca.addr("ca"), fingerprint, db.addr())
		for _, mode := range []string{"disable", "require"} { // libpq's own TLS passes through, too
			if got := run(t, db.client(addr, mode, "psql", psql("select 6 * 7")...)); got != "42" {
				t.Errorf("sslmode=%s: psql says %q", mode, got)
			}
		}
	})
}
