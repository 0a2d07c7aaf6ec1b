package integration

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// newNATS starts a NATS server that requires TLS and our certificate; without keys it
// has no TLS. More is more of its configuration.
func newNATS(t testing.TB, keys *pki, more string) *daemon {
	t.Helper()
	server := sbin(t, "nats-server")
	d := newDaemon(t)
	tls := ""
	if keys != nil {
		tls = fmt.Sprintf("tls {cert_file: %q, key_file: %q, ca_file: %q, verify: true}", keys.file("server.crt"), keys.file("server.key"), keys.file("ca.crt"))
	}
	conf := d.write(t, "nats.conf", fmt.Sprintf("listen: %s\nauthorization {user: app, password: secret}\n%s\n%s\n", d.addr(), tls, more))
	d.command = func() *exec.Cmd { return exec.Command(server, "-c", conf) }
	d.start(t)
	return d
}

// natsInfo hears the server's first message.
func (k *talk) natsInfo() (info map[string]any) {
	k.t.Helper()
	line := k.hear("\r\n")
	if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "INFO ")), &info); err != nil {
		k.t.Fatalf("%q: %v", line, err)
	}
	return info
}

// natsSession publishes to itself, and returns what it hears after the INFO.
func natsSession(t testing.TB, port, password string) (info map[string]any, heard string) {
	t.Helper()
	k := newTalk(t, port)
	info = k.natsInfo()
	k.say(`CONNECT {"verbose":true,"user":"app","pass":"` + password + "\"}\r\n")
	if heard = k.hear("\r\n"); heard != "+OK\r\n" {
		return info, heard
	}
	for _, say := range []string{"SUB orders 1\r\n", "PUB orders 5\r\nhello\r\n"} {
		k.say(say)
	}
	k.say("PING\r\n")
	return info, heard + k.hear("PONG\r\n")
}

// TestNATS proves that a client without TLS works with a server that takes nothing else,
// as it does without TLS: the INFO that it gets names no TLS.
func TestNATS(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	d, twin := newNATS(t, keys, ""), newNATS(t, nil, "")
	a, port := front(t, d, keys, "--starttls", "nats")
	if info := newTalk(t, d.port).natsInfo(); info["tls_required"] != true {
		t.Errorf("the server itself says %v", info)
	}
	for _, password := range []string{"secret", "wrong"} {
		info, got := natsSession(t, port, password)
		if _, want := natsSession(t, twin.port, password); got != want {
			t.Errorf("with password %s: %q, from the twin %q", password, got, want)
		}
		if info["tls_required"] != false || info["tls_verify"] != false || info["auth_required"] != true || info["max_payload"] != 1048576.0 {
			t.Errorf("the client gets %v", info)
		}
	}
	rejected(t, d, keys, "nats", "upstream_tls_rejected", func(port string) *exec.Cmd {
		return exec.Command("sh", "-c", `printf 'PING\r\n' | nc -w 5 127.0.0.1 "$1" | grep PONG`, "sh", port)
	})
	firstContact(t, d, keys, "", "", "a NATS greeting.*--starttls nats")
	firstContact(t, d, keys, "smtp", "", "a NATS greeting.*--starttls nats")

	full := newNATS(t, keys, "max_connections: 1")
	b := start(t, "run", "-c", place{addr: full.addr(), starttls: "nats"}.configFile(t, keys))
	_, front, _ := net.SplitHostPort(b.addr("front"))
	one := newTalk(t, front)
	one.hear("\r\n")
	other := newTalk(t, front)
	if got := other.hear("'\r\n"); !strings.HasPrefix(got, "INFO {") || !strings.Contains(got, "\r\n-ERR 'ambassador: ") || !strings.Contains(got, "max_connections") {
		t.Errorf("of a server that is full, the client hears %q", got)
	}
	d.stop(t)
	newTalk(t, port).hear(" (refused)'\r\n")
	a.await(`"stage":"dial","reason":"refused"`)
}

// newNNRPD starts INN's server for readers for each connection, with a news group;
// without keys it has no TLS.
func newNNRPD(t testing.TB, keys *pki) *server {
	t.Helper()
	const bin = "/usr/lib/news/bin/"
	for _, p := range []string{"nnrpd", "overchan"} {
		if _, err := os.Stat(bin + p); err != nil {
			missing(t, bin+p+" (Debian's inn2)")
		}
	}
	needRoot(t, "INN")
	d := newDaemon(t)
	uid, gid := ids(t, "news")
	news := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(bin+name, args...)
		cmd.Env = append(os.Environ(), "INNCONF="+d.file("inn.conf"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		return cmd
	}
	d.mkdir(t, "news", "db", "run", "spool", "overview", "log", "etc")
	tls := ""
	if keys != nil {
		for _, name := range []string{"server.crt", "server.key", "ca.crt"} {
			text, err := os.ReadFile(keys.file(name))
			if err = errors.Join(err, os.WriteFile(d.file(name), text, 0o600), os.Chown(d.file(name), uid, gid)); err != nil {
				t.Fatal(err)
			}
		}
		tls = fmt.Sprintf("tlscafile: %[1]s/ca.crt\ntlscertfile: %[1]s/server.crt\ntlskeyfile: %[1]s/server.key\n", d.dir)
	}
	d.write(t, "inn.conf", fmt.Sprintf("mta: \"/bin/true %%s\"\nnnrpdloadlimit: 0\norganization: test\novmethod: tradindexed\nhismethod: hisv6\npathhost: news.test\ndomain: news.test\n"+
		"pathnews: /usr/lib/news\npathetc: %[1]s/etc\npathdb: %[1]s/db\npathrun: %[1]s/run\npathlog: %[1]s/log\npathspool: %[1]s/spool\npathoverview: %[1]s/overview\n%[2]s", d.dir, tls))
	d.write(t, "etc/storage.conf", "method tradspool {\n  newsgroups: *\n  class: 0\n}\n")
	d.write(t, "spool/tradspool.map", "test.one 1\n")
	d.write(t, "db/active", "test.one 0000000003 0000000001 y\n")
	d.write(t, "db/history", "")
	d.write(t, "readers.conf", "auth all {\n  hosts: *\n  default: reader\n}\naccess all {\n  users: *\n  newsgroups: *\n}\n")
	run(t, news("overchan"))
	return startServer(t, nil, func(s *server, c duplex) {
		f, err := c.(*net.TCPConn).File()
		if err != nil {
			s.report(err.Error())
			return
		}
		defer f.Close()
		cmd := news("nnrpd", "-c", d.file("readers.conf"))
		cmd.Stdin, cmd.Stdout = f, f
		if err := cmd.Start(); err != nil {
			s.report(err.Error())
			return
		}
		ended := make(chan struct{})
		go func() { // ends with the program
			select {
			case <-s.done:
				cmd.Process.Kill() // close waits for it
			case <-ended:
			}
		}()
		cmd.Wait()
		close(ended)
	})
}

// TestNNTP proves that a news reader without TLS works through STARTTLS of INN, as it
// does without TLS.
func TestNNTP(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	srv, twin := newNNRPD(t, keys), newNNRPD(t, nil)
	_, port, _ := net.SplitHostPort(srv.addr)
	d := &daemon{port: port}
	_, through := front(t, d, keys, "--starttls", "nntp")
	session := func(port string) (heard string) {
		k := newTalk(t, port)
		heard = k.hear("\r\n")
		for _, step := range [][2]string{{"LIST\r\n", "\r\n.\r\n"}, {"GROUP test.one\r\n", "\r\n"}, {"GROUP test.two\r\n", "\r\n"}, {"MODE READER\r\n", "\r\n"}, {"QUIT\r\n", "\r\n"}} {
			k.say(step[0])
			heard += k.hear(step[1])
		}
		if rest, err := io.ReadAll(k.c); len(rest) > 0 || err != nil {
			t.Errorf("after QUIT: %q, %v", rest, err)
		}
		return heard
	}
	_, twinPort, _ := net.SplitHostPort(twin.addr)
	if got, want := session(through), session(twinPort); got != want || !strings.Contains(got, "\r\ntest.one 0000000003") {
		t.Errorf("through the ambassador:\n%s\nto the twin:\n%s", got, want)
	}
	k := newTalk(t, through)
	k.hear("\r\n")
	k.say("CAPABILITIES\r\n")
	if got := k.hear("\r\n.\r\n"); strings.Contains(got, "STARTTLS") {
		t.Errorf("the server does not see TLS: %q", got)
	}
	firstContact(t, d, keys, "", "", "an NNTP greeting.*--starttls nntp")
	srv.close()
	newTalk(t, through).hear(" (refused)\r\n")
}

// sieveAndLMTP is the configuration of two more services of Dovecot.
func sieveAndLMTP(t testing.TB) (services, sieve, lmtp string) {
	t.Helper()
	for _, program := range []string{"managesieve-login", "lmtp"} {
		if _, err := os.Stat("/usr/lib/dovecot/" + program); err != nil {
			missing(t, "Dovecot's "+program)
		}
	}
	var err, other error
	sieve, err = freePort()
	lmtp, other = freePort()
	if err = errors.Join(err, other); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`protocols = $protocols sieve lmtp
hostname = mail.test
postmaster_address = postmaster@mail.test
service managesieve-login {
  inet_listener sieve {
    port = %s
  }
}
service lmtp {
  inet_listener lmtp {
    address = 127.0.0.1
    port = %s
  }
}
`, sieve, lmtp), sieve, lmtp
}

// TestSieveAndLMTP proves that ManageSieve and LMTP clients without TLS work with a
// Dovecot that requires it, as they do without TLS.
func TestSieveAndLMTP(t *testing.T) {
	t.Parallel()
	need(t, "swaks")
	keys := newPKI(t)
	services, sieve, lmtp := sieveAndLMTP(t)
	d, _ := newDovecot(t, keys, services)
	services, twinSieve, twinLMTP := sieveAndLMTP(t)
	newDovecot(t, nil, services)
	scripts, mail := *d, *d
	scripts.port, mail.port = sieve, lmtp
	_, sievePort := front(t, &scripts, keys, "--starttls", "sieve")
	_, lmtpPort := front(t, &mail, keys, "--starttls", "lmtp")

	session := func(port string) (heard string) {
		k := newTalk(t, port)
		if got := k.hear(".\"\r\n"); strings.Contains(got, "STARTTLS") {
			t.Errorf("the client is told of STARTTLS: %q", got)
		}
		for _, step := range [][2]string{
			{"AUTHENTICATE \"PLAIN\" \"" + base64.StdEncoding.EncodeToString([]byte("\x00app\x00secret")) + "\"\r\n", "\r\n"},
			{"PUTSCRIPT \"a\" {7+}\r\nkeep;\r\n\r\n", "\r\n"}, {"LISTSCRIPTS\r\n", "OK \"Listscripts completed.\"\r\n"},
			{"GETSCRIPT \"b\"\r\n", "\r\n"}, {"LOGOUT\r\n", "\r\n"},
		} {
			k.say(step[0])
			heard += k.hear(step[1])
		}
		return heard
	}
	if got, want := session(sievePort), session(twinSieve); got != want || !strings.Contains(got, `"a"`) {
		t.Errorf("through the ambassador:\n%s\nto the twin:\n%s", got, want)
	}

	text := writeFile(t, "mail", "Subject: hello\n\nhello\n.\n..\nbye\n")
	deliver := func(port, to string) string {
		edit := []string{port, "PORT"}
		got := transcript(t, swaks(port, to, text, "--protocol", "LMTP"), edit)
		return regexp.MustCompile(`Saved|<\S+> \S+ |\S{20,}`).ReplaceAllString(got, "X")
	}
	for _, to := range []string{"app", "a b"} {
		if got, want := deliver(lmtpPort, to), deliver(twinLMTP, to); got != want {
			t.Errorf("through the ambassador:\n%s\nto the twin:\n%s", got, want)
		}
	}
	firstContact(t, &scripts, keys, "", "", "a ManageSieve greeting.*--starttls sieve")
	firstContact(t, &mail, keys, "smtp", "", "--starttls lmtp")
	postfix := newPostfix(t, keys)
	firstContact(t, postfix, keys, "lmtp", "", "the server speaks SMTP: .*--starttls smtp")
}

// TestPostscreen proves that a mail server which makes its clients wait, longer than an
// attempt has where there are several addresses, is reached: with the defaults where it is
// the only address, and with a timeout of STARTTLS where there are two.
func TestPostscreen(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	var ports [2]string
	for i := range ports {
		var err error
		if ports[i], err = freePort(); err != nil {
			t.Fatal(err)
		}
	}
	screen := func(port string) string {
		return "127.0.0.1:" + port + " inet n - n - 1 postscreen -o postscreen_access_list= -o postscreen_greet_action=enforce -o postscreen_greet_wait=4s -o postscreen_cache_map="
	}
	d := newPostfix(t, keys, screen(ports[0]), screen(ports[1]), "smtpd pass - - n - - smtpd", "tlsproxy unix - - n - 0 tlsproxy", "dnsblog unix - - n - 0 dnsblog")
	one := *d
	one.port = ports[0]
	_, port := front(t, &one, keys, "--starttls", "smtp")
	if err := submits(port); err != nil {
		t.Errorf("with one address and the defaults: %v", err)
	}
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  front: {listen: "127.0.0.1:0", upstream: mail}
upstreams:
  mail:
    endpoints: ["127.0.0.1:%s", "127.0.0.1:%s"]
    starttls: smtp
    starttls_options: {timeout: 20s}
    connect: {timeout: 25s}
    health: {interval: 0s}
    required: false
    tls: {identity: me, server_name: localhost, ca: %s}
identities: {me: {files: {cert: %s, key: %s}}}
`, ports[0], ports[1], keys.file("ca.crt"), keys.file("client.crt"), keys.file("client.key"))))
	_, port, _ = net.SplitHostPort(a.addr("front"))
	if err := submits(port); err != nil {
		t.Errorf("with two addresses and starttls_options.timeout: %v", err)
	}
}

// TestFTPIsRefusedWithWords proves that it is said of an FTP server why its TLS is not
// supported, where starttls: smtp meets it, whose greeting is the same.
func TestFTPIsRefusedWithWords(t *testing.T) {
	t.Parallel()
	server := sbin(t, "vsftpd")
	needRoot(t, "vsftpd")
	keys := newPKI(t)
	d := newDaemon(t)
	d.mkdir(t, "", "empty")
	conf := d.write(t, "vsftpd.conf", fmt.Sprintf("listen=YES\nlisten_address=127.0.0.1\nlisten_port=%s\nbackground=NO\nsecure_chroot_dir=%s\nseccomp_sandbox=NO\n", d.port, d.file("empty")))
	d.command = func() *exec.Cmd { return exec.Command(server, conf) }
	d.start(t)
	firstContact(t, d, keys, "smtp", "", `if it speaks FTP: FTP over TLS \(AUTH TLS\) is not supported`)
	firstContact(t, d, keys, "", "", `an SMTP \(or FTP\) greeting`)
	a := start(t, "forward", "--plain", "--listen", "127.0.0.1:0", "--to", d.addr())
	_, port, _ := net.SplitHostPort(a.addr("forward"))
	k := newTalk(t, port)
	k.hear("\r\n")
	k.say("QUIT\r\n")
	k.hear("221 Goodbye.\r\n")
}
