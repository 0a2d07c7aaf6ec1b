package integration

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// egressFile is a configuration with a SOCKS5 and a CONNECT proxy to this host, by
// its addresses and by the name db.test, and with a login on "guarded".
func egressFile(t testing.TB, users, dns string) string {
	t.Helper()
	return writeFile(t, "ambassador.yaml", fmt.Sprintf(`
dns: {servers: ["%s"]}
upstreams:
  internet: {dynamic: true, connect: {timeout: 5s}}
listeners:
  socks: {listen: "127.0.0.1:0", socks5: {}, rules: &rules [{host: localhost, upstream: internet}, {ip: [127.0.0.0/8], upstream: internet}]}
  guarded: {listen: "127.0.0.1:0", socks5: {users_file: %s}, rules: *rules}
  connect: {listen: "127.0.0.1:0", http_connect: {users_file: %[2]s}, rules: *rules}
`, dns, users))
}

// TestNetcats proves that both netcats work in each of their modes, and that bytes
// behind the reply, and the end of one side, are passed on.
func TestNetcats(t *testing.T) {
	t.Parallel()
	needNetcat(t)
	need(t, "ncat")
	sums := startServer(t, nil, checksum(0)) // which answers when the client has ended
	port := hostPort(sums.addr)
	a := start(t, "run", "-c", egressFile(t, usersFile(t, "batch:secret"), "127.0.0.1:1"))
	nc := func(args ...string) *exec.Cmd { return exec.Command("nc", append([]string{"-N"}, args...)...) }
	ncat := func(args ...string) *exec.Cmd { return exec.Command("ncat", args...) }
	text := strings.Repeat("all of it\n", 50_000)
	for name, cmd := range map[string]*exec.Cmd{
		"nc, SOCKS5":          nc("-X", "5", "-x", a.addr("socks"), "localhost", port),
		"ncat, SOCKS5":        ncat("--proxy", a.addr("socks"), "--proxy-type", "socks5", "--proxy-dns", "remote", "localhost", port),
		"ncat, SOCKS5, login": ncat("--proxy", a.addr("guarded"), "--proxy-type", "socks5", "--proxy-auth", "batch:secret", "127.0.0.1", port),
		"ncat, CONNECT":       ncat("--proxy", a.addr("connect"), "--proxy-type", "http", "--proxy-auth", "batch:secret", "127.0.0.1", port),
	} {
		cmd.Stdin = strings.NewReader(text)
		if got, want := run(t, cmd), fmt.Sprintf("%d ", len(text)); !strings.HasPrefix(got, want) {
			t.Errorf("%s: the answer is %q, want %q and a checksum", name, got, want)
		}
	}
}

// proxychains makes a program without proxy support use the proxy at an address, which
// resolves the names.
func proxychains(t testing.TB, proxy string, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	need(t, "proxychains4")
	conf := writeFile(t, "proxychains.conf", "strict_chain\nproxy_dns\ntcp_read_time_out 15000\ntcp_connect_time_out 8000\n[ProxyList]\nsocks5 "+strings.Replace(proxy, ":", " ", 1)+"\n")
	path, err := exec.LookPath("proxychains4")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args = append([]string{path, "-q", "-f", conf, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = path
	return cmd
}

// TestRuleOriginatesMTLS proves that one rule connects a program without TLS to a
// PostgreSQL server that requires our certificate: by SOCKS5, to the requested name,
// which is verified.
func TestRuleOriginatesMTLS(t *testing.T) {
	t.Parallel()
	needNetcat(t)
	keys := newPKI(t)
	db := newPostgres(t, keys)
	wrong, err := keys.server("server-wrong", "ca")
	if err != nil {
		t.Fatal(err)
	}
	impostor := startServer(t, wrong, echoLines)
	plain := startServer(t, keys.mtls(t), func(s *server, c duplex) {
		s.report("principal " + c.(interface{ ConnectionState() tls.ConnectionState }).ConnectionState().PeerCertificates[0].Subject.CommonName)
		echoLines(s, c)
	})
	z := startZone(t, func(question) answer { return answer{addrs: []string{"127.0.0.1"}} })
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
dns: {servers: ["%s"]}
identities:
  app: {files: {cert: %s, key: %s, ca: %s}}
upstreams:
  databases: {dynamic: true, starttls: postgres, tls: {identity: app}}
  partners: {dynamic: true, tls: {identity: app}}
listeners:
  socks:
    listen: "127.0.0.1:0"
    socks5: {}
    rules:
      - {ip: [127.0.0.0/8], port: %s, upstream: databases}
      - {ip: [127.0.0.0/8], upstream: partners}
`, z.addr, keys.file("client.crt"), keys.file("client.key"), keys.file("ca.crt"), db.port)))

	sql := "select current_user, ssl, client_dn from pg_stat_ssl where pid = pg_backend_pid()"
	cmd := proxychains(t, a.addr("socks"), db.client("db.test:"+db.port, "disable", "psql", psql(sql)...))
	if got := run(t, cmd); got != "app|t|/CN=app" {
		t.Errorf("psql without TLS sees %q", got)
	}
	a.await(`"destination":"db.test:` + db.port + `".*"stage":"relay","reason":"closed"`)
	// It asked for a name that the server's certificate does not have.
	cmd = proxychains(t, a.addr("socks"), db.client("elsewhere.test:"+db.port, "disable", "psql", psql(sql)...))
	if got, _, err := try(cmd); err == nil {
		t.Errorf("the wrong server answers %q", got)
	}
	a.await(`"destination":"elsewhere.test:` + db.port + `".*"stage":"tls","reason":"upstream_tls"`)

	nc := exec.Command("nc", "-N", "-X", "5", "-x", a.addr("socks"), "db.test", hostPort(plain.addr))
	nc.Stdin = strings.NewReader("plaintext\n")
	if got := run(t, nc); got != "plaintext" {
		t.Errorf("nc got %q", got)
	}
	if err := plain.received("principal app", patience); err != nil {
		t.Error(err)
	}
	a.refusal("socks", "", "db.test:"+hostPort(impostor.addr), socksFailed, "upstream_tls")
	if seen := impostor.reports(); strings.Contains(seen, "line:") {
		t.Errorf("the wrong server got %q", seen)
	}
}

// startSSH starts an SSH server that lets our own user in by a key, with a home that is
// the server's folder: bash reads .bashrc there, and one of the machine may wait for
// a lock. It gives the client's flags.
func startSSH(t testing.TB) (d *daemon, flags []string) {
	t.Helper()
	server := sbin(t, "sshd")
	need(t, "ssh", "ssh-keygen")
	d = newDaemon(t)
	if os.Getuid() == 0 {
		os.MkdirAll("/run/sshd", 0o755) // where sshd of Debian, as root, locks itself up
	}
	for _, key := range []string{"host", "id"} {
		run(t, exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", d.file(key)))
	}
	conf := d.write(t, "sshd_config", fmt.Sprintf("ListenAddress %s\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\nPidFile none\nSetEnv HOME=%s\n",
		d.addr(), d.file("host"), d.file("id.pub"), d.dir))
	d.command = func() *exec.Cmd { return exec.Command(server, "-D", "-e", "-f", conf) }
	d.start(t)
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return d, []string{"-F", "none", "-i", d.file("id"), "-l", me.Username, "-p", d.port, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new",
		"-o", "UserKnownHostsFile=" + d.file("known"), "-o", "ConnectTimeout=20"}
}

// TestSSH proves that ssh works through a ProxyCommand, with each netcat, in which
// the server speaks first; and that a command's exit code and its output arrive.
func TestSSH(t *testing.T) {
	t.Parallel()
	needNetcat(t)
	need(t, "ncat")
	d, flags := startSSH(t)
	a := start(t, "run", "-c", egressFile(t, usersFile(t, "batch:secret"), "127.0.0.1:1"))
	for name, proxy := range map[string]string{
		"nc":   "nc -X 5 -x " + a.addr("socks") + " %h %p",
		"ncat": "ncat --proxy " + a.addr("connect") + " --proxy-type http --proxy-auth batch:secret %h %p",
	} {
		cmd := exec.Command("ssh", append(append([]string{"-o", "ProxyCommand=" + proxy}, flags...), "127.0.0.1", "head -c 1000000 /dev/zero | wc -c; exit 7")...)
		text, stderr, err := try(cmd)
		if cmd.ProcessState.ExitCode() != 7 || text != "1000000" {
			t.Errorf("ssh by %s: %v, %q\n%s\nthe server:\n%s", name, err, text, stderr, tail(d.stderr.String(), 2000))
		}
	}
	a.await(`"listener":"socks".*"destination":"127.0.0.1:` + d.port + `".*"reason":"closed"`)
	a.await(`"listener":"connect".*"user":"batch".*"reason":"closed"`)
}

// TestGit proves that git clones through SOCKS5, by a name that only the proxy
// knows, and a program without any notion of a proxy by proxychains.
func TestGit(t *testing.T) {
	t.Parallel()
	need(t, "git", "curl")
	dir := t.TempDir()
	git := func(args ...string) *exec.Cmd {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HOME="+dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b.test",
			"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b.test", "no_proxy=")
		return cmd
	}
	run(t, git("init", "-q", "work"))
	if err := os.WriteFile(filepath.Join(dir, "work", "file"), []byte(strings.Repeat("content\n", 100_000)), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, git("-C", "work", "add", "file"))
	run(t, git("-C", "work", "commit", "-q", "-m", "one"))
	run(t, git("clone", "-q", "--bare", "work", "bare.git"))
	run(t, git("-C", "bare.git", "update-server-info"))
	web := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(web.Close)
	z := startZone(t, func(question) answer { return answer{addrs: []string{"127.0.0.1"}} })
	a := start(t, "run", "-c", egressFile(t, usersFile(t, "batch:secret"), z.addr))
	url := "http://db.test:" + hostPort(web.Listener.Addr().String()) + "/bare.git"
	run(t, git("-c", "http.proxy=socks5h://batch:secret@"+a.addr("guarded"), "clone", "-q", url, "cloned"))
	run(t, proxychains(t, a.addr("socks"), git("clone", "-q", url, "chained")))
	want := run(t, git("-C", "work", "rev-parse", "HEAD"))
	for _, clone := range []string{"cloned", "chained"} {
		if got := run(t, git("-C", clone, "rev-parse", "HEAD")); got != want {
			t.Errorf("%s is at %s, want %s", clone, got, want)
		}
	}
	re := regexp.MustCompile(`"listener":"guarded".*"user":"batch".*"destination":"db.test:\d+".*"reason":"closed"`)
	if _, err := a.stderr.awaitAfter(0, re, patience, a.exited); err != nil {
		t.Error(err)
	}
}
