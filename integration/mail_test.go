package integration

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// newPostfix starts a mail server that takes nothing but STARTTLS and demands our
// certificate. Without keys it has no TLS. Mail for app@mail.test goes into a
// file each in its folder m, other mail nowhere. Services are more entries of
// master.cf.
func newPostfix(t testing.TB, keys *pki, services ...string) *daemon {
	t.Helper()
	server := sbin(t, "postfix")
	need(t, "curl")
	needRoot(t, "Postfix")
	d := newDaemon(t)
	d.mkdir(t, "", "c", "q")
	d.mkdir(t, "postfix", "d")
	d.mkdir(t, "nobody", "m")
	uid, gid := ids(t, "nobody")
	tls := ""
	if keys != nil {
		tls = fmt.Sprintf("smtpd_tls_security_level = encrypt\nsmtpd_tls_req_ccert = yes\nsmtpd_tls_received_header = yes\nsmtpd_tls_loglevel = 1\n"+
			"smtpd_tls_chain_files = %s, %s\nsmtpd_tls_CAfile = %s\n", keys.file("server.key"), keys.file("server.crt"), keys.file("ca.crt"))
	}
	d.write(t, "c/main.cf", fmt.Sprintf(`
compatibility_level = 3.6
queue_directory = %[1]s/q
data_directory = %[1]s/d
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
maillog_file = /dev/stdout
myhostname = mail.test
mydestination =
alias_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtpd_peername_lookup = no
smtpd_recipient_restrictions = reject_unauth_destination
virtual_mailbox_domains = mail.test
virtual_mailbox_base = %[1]s/m
virtual_mailbox_maps = static:app/
virtual_uid_maps = static:%[2]d
virtual_gid_maps = static:%[3]d
virtual_mailbox_limit = 0
default_transport = discard:
message_size_limit = 60000000
%[4]s`, d.dir, uid, gid, tls))
	d.write(t, "c/master.cf", fmt.Sprintf(`
127.0.0.1:%s inet n - n - - smtpd
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
tlsmgr    unix  - - n 1000? 1 tlsmgr
smtp      unix  - - n - - smtp
error     unix  - - n - - error
retry     unix  - - n - - error
virtual   unix  - n n - - virtual
anvil     unix  - - n - 1 anvil
discard   unix  - - n - - discard
postlog   unix-dgram n - n - 1 postlogd
%s
`, d.port, strings.Join(services, "\n")))
	run(t, exec.Command(server, "-c", d.file("c"), "check")) // makes the queue's folders
	d.command = func() *exec.Cmd { return exec.Command("/usr/lib/postfix/sbin/master", "-c", d.file("c"), "-s") }
	d.start(t)
	return d
}

// curl is curl with a URL and what else it should do, without progress.
func curl(url string, args ...string) *exec.Cmd {
	cmd := exec.Command("curl", append([]string{"-q", "-sS", "--max-time", "60", url}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "no_proxy=*")
	return cmd
}

// TestPostfix proves that a mail client without TLS can submit to a server that
// takes nothing else and asks for our certificate, as it does without TLS.
func TestPostfix(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	d, twin := newPostfix(t, keys), newPostfix(t, nil)
	dialled := d.stdout.len() // before it: whether the port answers
	a, port := front(t, d, keys, "--starttls", "smtp")
	if _, stderr, err := try(curl("smtp://"+d.addr(), "--mail-from", "a@b.test", "--mail-rcpt", "app@mail.test", "-T", "/dev/null")); err == nil {
		t.Errorf("the server takes mail in plaintext: %s", stderr)
	}

	// The same session by hand: word for word, but for the name of the queue file.
	session := func(port string) (heard string) {
		k := newTalk(t, port)
		k.hear("220 mail.test ESMTP Postfix\r\n")
		for _, step := range [][2]string{
			{"EHLO client.test\r\n", "250 CHUNKING\r\n"}, {"MAIL FROM:<a@b.test>\r\n", "Ok\r\n"}, {"RCPT TO:<x@elsewhere.test>\r\n", "denied\r\n"},
			{"RCPT TO:<app@mail.test>\r\n", "Ok\r\n"}, {"DATA\r\n", "<CR><LF>.<CR><LF>\r\n"}, {"Subject: x\r\n\r\nhello\r\n.\r\n", "\r\n"},
			{"NOPE\r\n", "\r\n"}, {"QUIT\r\n", "Bye\r\n"},
		} {
			k.say(step[0])
			heard += k.hear(step[1])
		}
		if rest, err := io.ReadAll(k.c); len(rest) > 0 || err != nil {
			t.Errorf("after QUIT: %q, %v", rest, err)
		}
		return regexp.MustCompile(`queued as \w+`).ReplaceAllString(heard, "queued")
	}
	if got, want := session(port), session(twin.port); got != want {
		t.Errorf("through the ambassador:\n%s\nto the twin:\n%s", got, want)
	}

	// 20 MB of mail, and its sender: the server records that in the header.
	mail := writeFile(t, "mail", "From: a@b.test\nDate: Tue, 24 Nov 2026 12:00:00 +0000\nMessage-Id: <1@b.test>\nSubject: large\n\n"+strings.Repeat(strings.Repeat("0123456789", 7)+"\n", 20<<20/71))
	send := func(port string) *exec.Cmd {
		return curl("smtp://127.0.0.1:"+port+"/client.test", "--mail-from", "a@b.test", "--mail-rcpt", "app@mail.test", "-T", mail)
	}
	twins(t, send(twin.port), send(port))
	got, want := d.delivered(t, "Subject: large"), twin.delivered(t, "Subject: large")
	if m := regexp.MustCompile(`(?s)TLSv1\.3.*Client CN "app".*verified OK`).FindString(got[:2000]); m == "" {
		t.Errorf("the server does not know our certificate: %s", got[:2000])
	}
	body := func(s string) string { _, s, _ = strings.Cut(s, "Subject: large"); return s }
	if sha256.Sum256([]byte(body(got))) != sha256.Sum256([]byte(body(want))) || len(body(got)) < 20_000_000 {
		t.Errorf("%d bytes were delivered, by the twin %d, or others", len(body(got)), len(body(want)))
	}

	rejected(t, d, keys, "smtp", "closed", func(port string) *exec.Cmd {
		return curl("smtp://127.0.0.1:"+port, "--mail-from", "a@b.test", "--mail-rcpt", "app@mail.test", "-T", mail)
	})
	if m := regexp.MustCompile(`(?m)^.*(lost connection|fatal|panic|improper command).*$`).FindString(d.stdout.String()[dialled:]); m != "" {
		t.Errorf("the server complains: %s", m)
	}
	firstContact(t, d, keys, "", "", "SMTP .*--starttls smtp")
	firstContact(t, d, keys, "mysql", "", "--starttls smtp")
	d.stop(t)
	k := newTalk(t, port)
	k.hear(" (refused)\r\n")
	a.await(`"stage":"dial","reason":"refused"`)
}

// submission is the entry of a port for clients that log in, whom Dovecot knows.
func submission(port string, users *daemon) string {
	return fmt.Sprintf("127.0.0.1:%s inet n - n - - smtpd -o smtpd_sasl_auth_enable=yes -o smtpd_sasl_type=dovecot -o smtpd_sasl_path=%s"+
		" -o smtpd_recipient_restrictions=permit_sasl_authenticated,reject", port, users.file("run/auth-smtp"))
}

// swaks sends a file, which it does not print.
func swaks(port, to, mail string, args ...string) *exec.Cmd {
	line := []string{"--server", "127.0.0.1", "--port", port, "--helo", "client.test", "--from", "a@b.test", "--to", to, "--data", "@" + mail, "--suppress-data"}
	cmd := exec.Command("swaks", append(line, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME=/nonexistent")
	return cmd
}

// TestPostfixSubmission proves that a client without TLS logs in at a submission
// port and has its mail relayed, and is refused where it should be, word for word
// as without TLS; on the relay port, too, which knows no logins.
func TestPostfixSubmission(t *testing.T) {
	t.Parallel()
	need(t, "swaks")
	keys := newPKI(t)
	users, _ := newDovecot(t, nil)
	var ports [2]string
	for i := range ports {
		var err error
		if ports[i], err = freePort(); err != nil {
			t.Fatal(err)
		}
	}
	d, twin := newPostfix(t, keys, submission(ports[0], users)), newPostfix(t, nil, submission(ports[1], users))
	_, relay := front(t, d, keys, "--starttls", "smtp")
	other := *d
	other.port = ports[0]
	_, login := front(t, &other, keys, "--starttls", "smtp")
	small := writeFile(t, "small", "Subject: small\n\nhello\n.\n..\nbye\n")
	large := writeFile(t, "large", "From: a@b.test\nDate: Tue, 24 Nov 2026 12:00:00 +0000\nMessage-Id: <2@b.test>\nSubject: submitted\n\n"+strings.Repeat(strings.Repeat("0123456789", 7)+"\n", 20<<20/71))
	app := []string{"--auth", "PLAIN", "--auth-user", "app", "--auth-password", "secret"}
	both := func(direct, through, to, mail string, args ...string) string {
		t.Helper()
		queued := regexp.MustCompile(`queued as \w+`)
		edit := []string{direct, "PORT", through, "PORT"}
		want, got := transcript(t, swaks(direct, to, mail, args...), edit), transcript(t, swaks(through, to, mail, args...), edit)
		if got, want = queued.ReplaceAllString(got, "queued"), queued.ReplaceAllString(want, "queued"); got != want {
			t.Errorf("through the ambassador:\n%s\nto the twin:\n%s", tail(got, 3000), tail(want, 3000))
		}
		return got
	}
	for _, tt := range []struct {
		direct, through, to, mail string
		args                      []string
		want                      string
	}{
		{twin.port, relay, "app@mail.test", large, nil, "250 2.0.0 Ok: queued"},
		{twin.port, relay, "x@elsewhere.test", small, nil, "554 5.7.1 <x@elsewhere.test>: Relay access denied"},
		{twin.port, relay, "app@mail.test", small, app, "Host did not advertise authentication"},
		{ports[1], login, "app@mail.test", large, app, "235 2.7.0 Authentication successful"},
		{ports[1], login, "x@elsewhere.test", small, app, "250 2.0.0 Ok: queued"},
		{ports[1], login, "app@mail.test", small, nil, "554 5.7.1"},
		{ports[1], login, "app@mail.test", small, []string{"--auth", "PLAIN", "--auth-user", "app", "--auth-password", "wrong"}, "535 5.7.8"},
		{ports[1], login, "app@mail.test", small, []string{"--pipeline", "--auth", "LOGIN", "--auth-user", "app", "--auth-password", "secret"}, "250 2.0.0 Ok: queued"},
	} {
		if got := both(tt.direct, tt.through, tt.to, tt.mail, tt.args...); !strings.Contains(got, tt.want) {
			t.Errorf("to %s with %v: %s\nwant %q", tt.to, tt.args, tail(got, 2000), tt.want)
		}
	}
	got, want := d.delivered(t, "Subject: submitted"), twin.delivered(t, "Subject: submitted")
	body := func(s string) string { _, s, _ = strings.Cut(s, "Subject: submitted"); return s }
	if body(got) != body(want) || len(body(got)) < 20_000_000 {
		t.Errorf("%d bytes were delivered, by the twin %d, or others", len(body(got)), len(body(want)))
	}
}

// delivered waits for a mail with that text in the mailbox, and returns it.
func (d *daemon) delivered(t testing.TB, text string) string {
	t.Helper()
	var mail string
	err := eventually(patience, func() error {
		files, _ := filepath.Glob(d.file("m/app/new/*"))
		for _, f := range files {
			b, err := os.ReadFile(f)
			if mail = string(b); err == nil && strings.Contains(mail, text) {
				return nil
			}
		}
		return fmt.Errorf("%d mails, none with %q\n%s", len(files), text, tail(d.stdout.String(), 2000))
	})
	if err != nil {
		t.Fatal(err)
	}
	return mail
}

// newDovecot starts an IMAP and POP3 server that takes nothing but STARTTLS and
// knows its users by their certificate's name; without keys it has no TLS. port
// is IMAP's; POP3's is returned. Services are more of its configuration.
func newDovecot(t testing.TB, keys *pki, services ...string) (d *daemon, pop3 string) {
	t.Helper()
	server := sbin(t, "dovecot")
	need(t, "curl")
	needRoot(t, "Dovecot")
	d = newDaemon(t)
	pop3, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	d.mkdir(t, "", "run", "state")
	d.mkdir(t, "nobody", "h")
	uid, gid := ids(t, "nobody")
	tls := "ssl = no\n"
	if keys != nil {
		tls = fmt.Sprintf("ssl = required\nssl_cert = <%s\nssl_key = <%s\nssl_ca = <%s\nssl_verify_client_cert = yes\nssl_require_crl = no\n"+
			"auth_ssl_require_client_cert = yes\nauth_ssl_username_from_cert = yes\n", keys.file("server.crt"), keys.file("server.key"), keys.file("ca.crt"))
	}
	conf := d.write(t, "dovecot.conf", fmt.Sprintf(`
protocols = imap pop3
listen = 127.0.0.1
base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = /dev/stderr
disable_plaintext_auth = no
auth_mechanisms = plain login apop
auth_failure_delay = 0
first_valid_uid = 1
service auth {
  unix_listener auth-smtp {
    mode = 0666
  }
}
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
mail_location = maildir:%[1]s/h/%%u
passdb {
  driver = static
  args = password=secret
}
userdb {
  driver = static
  args = uid=%[2]d gid=%[3]d home=%[1]s/h/%%u
}
service imap-login {
  inet_listener imap {
    port = %[4]s
  }
  inet_listener imaps {
    port = 0
  }
}
service pop3-login {
  inet_listener pop3 {
    port = %[5]s
  }
  inet_listener pop3s {
    port = 0
  }
}
%[6]s
%[7]s`, d.dir, uid, gid, d.port, pop3, tls, strings.Join(services, "\n")))
	d.command = func() *exec.Cmd { return exec.Command(server, "-F", "-c", conf) }
	d.start(t)
	return d, pop3
}

// TestDovecot proves that IMAP and POP3 clients without TLS work against a server
// that takes nothing else and asks for our certificate, as they do without TLS.
func TestDovecot(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	d, pop3 := newDovecot(t, keys)
	twin, twinPOP3 := newDovecot(t, nil)
	_, port := front(t, d, keys, "--starttls", "imap")
	popServer := *d
	popServer.port = pop3
	_, popPort := front(t, &popServer, keys, "--starttls", "pop3")

	mail := writeFile(t, "mail", "Subject: hello\r\n\r\n"+strings.Repeat(strings.Repeat("0123456789", 7)+"\r\n", 1<<20/72))
	user := []string{"-u", "app:secret"}
	imap := func(path string, args ...string) string {
		t.Helper()
		return twins(t, curl("imap://127.0.0.1:"+twin.port+path, append(user, args...)...), curl("imap://127.0.0.1:"+port+path, append(user, args...)...))
	}
	imap("/INBOX", "-T", mail)
	if got := imap("/INBOX;MAILINDEX=1"); len(got) < 1_000_000 {
		t.Errorf("%d bytes came back", len(got))
	}
	imap("/INBOX", "-X", "FETCH 1 (FLAGS RFC822.SIZE)")
	imap("/", "-u", "app:wrong")
	pop := func(path string, args ...string) string {
		t.Helper()
		return twins(t, curl("pop3://127.0.0.1:"+twinPOP3+path, append(user, args...)...), curl("pop3://127.0.0.1:"+popPort+path, append(user, args...)...))
	}
	if got := pop("/1"); len(got) < 1_000_000 {
		t.Errorf("%d bytes came back", len(got))
	}
	pop("/", "--login-options", "AUTH=+APOP") // the greeting's timestamp is the server's own
	pop("/", "-u", "app:wrong")

	// By hand: only the server's capabilities under TLS differ.
	k := newTalk(t, port)
	if got := k.hear("\r\n"); got != "* OK Dovecot (Debian) ready.\r\n" {
		t.Errorf("the greeting is %q", got)
	}
	k.say("a CAPABILITY\r\n")
	if got := k.hear("a OK Pre-login capabilities listed, post-login capabilities have more.\r\n"); strings.Contains(got, "STARTTLS") || strings.Contains(got, "LOGINDISABLED") {
		t.Errorf("the client is told %q, which is from before TLS", got)
	}
	k.say("b LOGIN someone secret\r\n") // it is the certificate that has the name
	k.hear("Logged in\r\n")
	if _, err := d.stderr.awaitAfter(0, regexp.MustCompile(`imap-login: (Info: )?Login: user=<app>.* TLS`), patience, d.exited); err != nil {
		t.Error(err)
	}
	k.say("c LOGOUT\r\n")
	if text, err := io.ReadAll(k.c); !strings.Contains(string(text), "c OK Logout completed") || err != nil {
		t.Errorf("LOGOUT: %q, %v", text, err)
	}

	plain := newTalk(t, d.port)
	plain.hear("\r\n")
	plain.say("a LOGIN app secret\r\n")
	if got := plain.hear("\r\n"); strings.HasPrefix(got, "a OK") {
		t.Errorf("the server takes plaintext: %q", got)
	}
	rejected(t, d, keys, "imap", "closed", func(port string) *exec.Cmd { return curl("imap://127.0.0.1:"+port, user...) })
	rejected(t, &popServer, keys, "pop3", "closed", func(port string) *exec.Cmd { return curl("pop3://127.0.0.1:"+port, user...) })
	firstContact(t, d, keys, "", "", "an IMAP greeting.*--starttls imap")
	firstContact(t, d, keys, "pop3", "", "an IMAP greeting.*--starttls imap")
	firstContact(t, &popServer, keys, "", "", "a POP3 greeting.*--starttls pop3")
	d.stop(t)
	newTalk(t, port).hear(" (refused)\r\n")
	newTalk(t, popPort).hear(" (refused)\r\n")
}
