package integration

import (
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// service is a protocol with the same promises as PostgreSQL.
type service struct {
	starttls string
	// start starts a server of it, and gives the port.
	start func(testing.TB, *pki) (*daemon, string)
	// client is one session, from connect to a good end.
	client func(port string) error
	// sees proves that the servers know new sessions by a certificate of that name;
	// nil: they do not say.
	sees func(t *testing.T, port, name string, servers []*daemon)
	// complaint is what a server's log may say once, of the test's own question
	// whether the port answers; nil: as often as it likes.
	complaint *regexp.Regexp
}

func services() []service {
	command := func(line func(port string) *exec.Cmd) func(string) error {
		return func(port string) error {
			_, stderr, err := try(line(port))
			if err != nil {
				err = fmt.Errorf("%w: %s", err, stderr)
			}
			return err
		}
	}
	mail := func(scheme string) func(string) error {
		return command(func(port string) *exec.Cmd { return curl(scheme+"://127.0.0.1:"+port, "-u", "app:secret") })
	}
	maria := func(user string) func(string) error {
		return command(func(port string) *exec.Cmd { return new(mariadb).client(port, user, "-e", "select 1") })
	}
	return []service{
		{"ldap", func(t testing.TB, keys *pki) (*daemon, string) { d := newSlapd(t, keys); return d, d.port },
			command(func(port string) *exec.Cmd { return ldap("ldapwhoami", port) }), seesLDAP,
			regexp.MustCompile(`(?m)^.*(TLS negotiation failure|connection lost).*$`)},
		{"mysql", startMariaDB, maria("any"), func(t *testing.T, port, _ string, _ []*daemon) {
			if err := maria("renewed")(port); err != nil {
				t.Error(err)
			}
		}, nil},
		{"imap", func(t testing.TB, keys *pki) (*daemon, string) { d, _ := newDovecot(t, keys); return d, d.port }, mail("imap"), seesDovecot("imap"), nil},
		{"pop3", func(t testing.TB, keys *pki) (*daemon, string) { return newDovecot(t, keys) }, mail("pop3"), seesDovecot("pop3"), nil},
		{"smtp", func(t testing.TB, keys *pki) (*daemon, string) { d := newPostfix(t, keys); return d, d.port }, submits, seesPostfix, nil},
		{"xmpp", func(t testing.TB, keys *pki) (*daemon, string) { d := newProsody(t, keys); return d, d.port }, logsIn, nil, nil},
	}
}

// startMariaDB starts a server with two more accounts: one accepts any certificate of
// the CA, one only that of the new name.
func startMariaDB(t testing.TB, keys *pki) (*daemon, string) {
	t.Helper()
	d := newMariaDB(t, keys)
	run(t, d.client("", "root", "-e", `
create user any@'127.0.0.1' identified via mysql_native_password using password('secret') require x509;
create user renewed@'127.0.0.1' identified via mysql_native_password using password('secret') require subject '/CN=new-app';`))
	return d.daemon, d.port
}

func seesLDAP(t *testing.T, port, name string, _ []*daemon) {
	t.Helper()
	if got := whoami(t, port); !strings.Contains(got, "dn:cn="+name) {
		t.Errorf("the server sees %q, want %s", got, name)
	}
}

func seesDovecot(protocol string) func(*testing.T, string, string, []*daemon) {
	return func(t *testing.T, _, name string, servers []*daemon) {
		t.Helper()
		re := regexp.MustCompile(protocol + `-login: (Info: )?Login: user=<` + name + `>.* TLS`)
		err := eventually(patience, func() error {
			if !slices.ContainsFunc(servers, func(d *daemon) bool { return re.MatchString(d.stderr.String()) }) {
				return fmt.Errorf("neither server says %q", re)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// seesPostfix looks into the mails: the servers write into each who brought it.
func seesPostfix(t *testing.T, _, name string, servers []*daemon) {
	t.Helper()
	err := eventually(patience, func() error {
		for _, d := range servers {
			if _, _, err := try(exec.Command("grep", "-rqF", `Client CN "`+name+`"`, d.file("m"))); err == nil {
				return nil
			}
		}
		return fmt.Errorf("no mail was brought by %s", name)
	})
	if err != nil {
		t.Error(err)
	}
}

// submits sends a mail, and wants every answer to be a good one.
func submits(port string) error {
	return converse(port, "220 ", [][2]string{{"EHLO client.test\r\n", "250 CHUNKING\r\n"}, {"MAIL FROM:<a@b.test>\r\n", "Ok\r\n"}, {"RCPT TO:<app@mail.test>\r\n", "Ok\r\n"},
		{"DATA\r\n", "<CR><LF>.<CR><LF>\r\n"}, {"Subject: x\r\n\r\nhello\r\n.\r\n", "queued as "}, {"QUIT\r\n", "221 "}})
}

// logsIn logs in at an XMPP server.
func logsIn(port string) error {
	return converse(port, "", [][2]string{{xmppOpen, xmppLists},
		{"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>" + base64.StdEncoding.EncodeToString([]byte("\x00app\x00secret")) + "</auth>", "<success "},
		{"</stream:stream>", ""}})
}

// converse is talk for its own goroutine: it sends each line after the expected answer,
// and expects the server to end.
func converse(port, greeting string, steps [][2]string) error {
	c, err := dialTCP("127.0.0.1:" + port)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	due, heard, buf := greeting, "", make([]byte, 4096)
	for _, step := range append(steps, [2]string{}) {
		for !strings.Contains(heard, due) {
			n, err := c.Read(buf)
			if heard += string(buf[:n]); err != nil && !strings.Contains(heard, due) {
				return fmt.Errorf("%w after %q, waiting for %q", err, heard, due)
			}
		}
		if due, heard = step[1], ""; step[0] == "" {
			break
		}
		if _, err := io.WriteString(c, step[0]); err != nil {
			return err
		}
	}
	_, err = io.Copy(io.Discard, c)
	return err
}

// loop is clients that connect one after the other, a few at a time, until stop.
type loop struct {
	client func(port string) error
	port   string
	done   chan struct{}
	wg     sync.WaitGroup

	mu   sync.Mutex
	all  []try1        // guarded by mu; in the order of their ends
	more chan struct{} // guarded by mu; closed at the next
}

func startLoop(t testing.TB, client func(string) error, port string) *loop {
	l := &loop{client: client, port: port, done: make(chan struct{}), more: make(chan struct{})}
	for range 2 {
		l.wg.Go(l.run) // stop waits for it
	}
	t.Cleanup(func() { l.stop() })
	return l
}

func (l *loop) run() {
	for {
		select {
		case <-l.done:
			return
		default:
		}
		o := try1{began: time.Now()}
		o.err = l.client(l.port)
		o.ended = time.Now()
		l.mu.Lock()
		l.all = append(l.all, o)
		close(l.more)
		l.more = make(chan struct{})
		l.mu.Unlock()
	}
}

// await waits until n sessions have ended that began from now on.
func (l *loop) await(t testing.TB, n int) {
	t.Helper()
	begin, bound := time.Now(), time.After(2*patience)
	for {
		l.mu.Lock()
		more, got := l.more, 0
		for _, o := range l.all {
			if !o.began.Before(begin) {
				got++
			}
		}
		l.mu.Unlock()
		if got >= n {
			return
		}
		select {
		case <-more:
		case <-bound:
			t.Fatalf("%d sessions in %v, want %d", got, 2*patience, n)
		}
	}
}

// stop ends the loop and gives all its sessions.
func (l *loop) stop() []try1 {
	l.mu.Lock()
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	l.mu.Unlock()
	l.wg.Wait()
	return l.all
}

// TestGuarantees proves PostgreSQL's promises for each other protocol: in a loop of
// connections, with one of two servers killed, the other restarted, and our
// certificate replaced, no client fails except those with a session on the killed
// server.
func TestGuarantees(t *testing.T) {
	for _, s := range services() {
		t.Run(s.starttls, func(t *testing.T) {
			t.Parallel()
			s.guarantees(t)
		})
	}
}

func (s service) guarantees(t *testing.T) {
	keys := newPKI(t)
	one, onePort := s.start(t, keys)
	two, twoPort := s.start(t, keys)
	servers := []*daemon{one, two}
	dir := t.TempDir()
	replaceClient(t, keys.ca, dir, "app")
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  front: {listen: "127.0.0.1:0", upstream: up}
identities:
  me: {files: {cert: %[1]s/client.crt, key: %[1]s/client.key, ca: %[2]s}}
upstreams:
  up:
    endpoints: ["127.0.0.1:%[3]s", "127.0.0.1:%[4]s"]
    starttls: %[5]s
    tls: {identity: me, server_name: localhost}
    health: {interval: 500ms}
`, dir, keys.file("ca.crt"), onePort, twoPort, s.starttls)))
	_, port, _ := net.SplitHostPort(a.addr("front"))
	a.metric("ambassador_addresses{upstream=up,health=healthy}", 2)

	l := startLoop(t, s.client, port)
	l.await(t, 4)
	type window struct{ from, to time.Time }
	var windows []window
	down := func(d *daemon, end func(testing.TB)) {
		t.Helper()
		w := window{from: time.Now()}
		end(t)
		w.to = time.Now()
		windows = append(windows, w)
		l.await(t, 6)
		d.start(t)
		a.metric("ambassador_addresses{upstream=up,health=healthy}", 2)
		a.metric("ambassador_breakers{upstream=up,state=closed}", 2)
		l.await(t, 4)
	}
	down(one, one.crash)
	down(two, two.stop)
	mark := a.stderr.len()
	replaceClient(t, keys.ca, dir, "new-app")
	a.awaitAfter(mark, `"msg":"identity renewed"`)
	l.await(t, 4)
	if s.sees != nil {
		s.sees(t, port, "new-app", servers)
	}
	all, cut, failed := l.stop(), 0, 0
	for _, o := range all {
		switch {
		case o.err == nil:
		case slices.ContainsFunc(windows, func(w window) bool { return o.began.Before(w.to) && o.ended.After(w.from) }):
			cut++
		default:
			if failed++; failed <= 3 {
				t.Errorf("a session failed after %v: %v", o.took(), o.err)
			}
		}
	}
	t.Logf("%s: %d sessions while one of two servers was killed, the other restarted and our certificate replaced: %d were cut, %d failed otherwise", s.starttls, len(all), cut, failed)
	for _, d := range servers {
		if s.complaint == nil {
			break
		}
		if all := s.complaint.FindAllString(d.stderr.String(), -1); len(all) > 1 {
			t.Errorf("the server complains: %q", all)
		}
	}
	s.usesTheNewOne(t, a, port, dir)
}

// replaceClient puts a new certificate in the place of client.crt and client.key.
func replaceClient(t testing.TB, by *authority, dir, name string) {
	t.Helper()
	next, err := by.issue(leaf{cn: name})
	if err == nil {
		err = next.write(dir, "client")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// usesTheNewOne replaces our certificate by one that the servers refuse: then no
// session works, which proves that it is the one on disk that they are shown.
func (s service) usesTheNewOne(t *testing.T, a *ambassador, port, dir string) {
	t.Helper()
	other, err := newAuthority("another CA")
	if err != nil {
		t.Fatal(err)
	}
	mark := a.stderr.len()
	replaceClient(t, other, dir, "app")
	a.awaitAfter(mark, `"msg":"identity renewed"`)
	if err := s.client(port); err == nil {
		t.Error("the servers take a certificate of another CA, or are not shown it")
	}
}
