package integration

import (
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// conversation is a program of the system with which a test talks line by line.
type conversation struct {
	*process
	t     testing.TB
	in    io.WriteCloser
	heard int // bytes of its output
}

func talkWith(t testing.TB, cmd *exec.Cmd) *conversation {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := launch(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end() })
	return &conversation{process: p, t: t, in: in}
}

func (c *conversation) say(line string) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.in, line); err != nil {
		c.t.Fatalf("%s: %v: %s", c.name(), err, c.stderr)
	}
}

// hear waits until re matches what the program has printed since the last call.
func (c *conversation) hear(re string) string {
	c.t.Helper()
	m, err := c.stdout.awaitAfter(c.heard, regexp.MustCompile(re), patience, c.exited)
	if err != nil {
		c.t.Fatalf("%s: %v; it has printed %q, %q", c.name(), err, c.stdout.String()[c.heard:], c.stderr)
	}
	c.heard += regexp.MustCompile(re).FindStringIndex(c.stdout.String()[c.heard:])[1]
	return m[0]
}

// end closes the program's input, and expects that it ends well.
func (c *conversation) end() {
	c.t.Helper()
	c.in.Close()
	if code, err := c.exit(patience); err != nil || code != 0 {
		c.t.Errorf("%s ends with %d, %v: %s", c.name(), code, err, c.stderr)
	}
}

// realClients are servers of the system, a configuration with a listener in front of each,
// and clients that keep sessions through them.
type realClients struct {
	t     testing.TB
	db    *mariadb
	pg    *postgres
	host  *daemon
	flags []string // of ssh
	cache *redis
	jobs  *rabbitmq         // nil: short
	ports map[string]string // by the name of the listener
}

// newRealClients starts the servers. RabbitMQ is among them under AMBASSADOR_TEST_LONG=1.
func newRealClients(t testing.TB, keys *pki) *realClients {
	t.Helper()
	need(t, "redis-cli")
	r := &realClients{t: t, db: newMariaDB(t, keys), pg: newPostgres(t, keys), cache: startRedis(t, keys, 100), ports: map[string]string{}}
	r.host, r.flags = startSSH(t)
	names := []string{"db", "pg", "cache", "ssh"}
	if long() {
		r.jobs = newRabbitMQ(t, keys)
		names = append(names, "jobs")
	}
	for _, name := range names {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		r.ports[name] = port
	}
	return r
}

// config is the configuration of the ambassador. All but SSH is over TLS.
func (r *realClients) config(keys *pki) string {
	text := fmt.Sprintf(`
identities: {me: {files: {cert: %[2]s, key: %[3]s}}}
upstreams:
  db: {endpoints: ["%[4]s"], tls: &tls {identity: me, server_name: localhost, ca: %[1]s}, starttls: mysql}
  pg: {endpoints: ["%[5]s"], tls: *tls, starttls: postgres}
  ssh: {endpoints: ["%[6]s"]}
  cache: {endpoints: ["%[7]s"], tls: *tls}
`, keys.file("ca.crt"), keys.file("client.crt"), keys.file("client.key"), r.db.addr(), r.pg.addr(), r.host.addr(), r.cache.addr)
	if r.jobs != nil {
		text += fmt.Sprintf("  jobs: {endpoints: [\"%s\"], tls: *tls}\n", r.jobs.addr())
	}
	text += "listeners:\n"
	for name, port := range r.ports {
		text += fmt.Sprintf("  %[1]s: {listen: \"127.0.0.1:%[2]s\", upstream: %[1]s}\n", name, port)
	}
	return text
}

// redisCLI is a command of the client of Redis.
func (r *realClients) redisCLI(args ...string) *exec.Cmd {
	return exec.Command("redis-cli", append([]string{"-p", r.ports["cache"]}, args...)...)
}

// liveThrough opens a session of each client, replaces the ambassador that often, and
// proves that each session goes on with the same backend, and that those alone are carried.
func (r *realClients) liveThrough(a *ambassador, times int, replace func()) {
	r.t.Helper()
	sql := talkWith(r.t, r.db.client(r.ports["db"], "native", "--unbuffered", "--skip-column-names", "db"))
	sql.say("begin; create temporary table kept (n int); insert into kept values (41); select concat('connection ', connection_id());")
	id := sql.hear(`connection \d+`)
	psql := talkWith(r.t, r.pg.client("127.0.0.1:"+r.ports["pg"], "disable", "psql", "-XqAt", "-v", "ON_ERROR_STOP=1"))
	psql.say("begin; create temporary table kept (n int); insert into kept values (41); select 'backend ' || pg_backend_pid();")
	backend := psql.hear(`backend \d+`)
	shell := talkWith(r.t, exec.Command("ssh", append(append([]string{"-p", r.ports["ssh"]}, r.flags...), "127.0.0.1", "sh")...))
	shell.say("n=41; echo shell $$")
	pid := shell.hear(`shell \d+`)
	reader := talkWith(r.t, r.redisCLI("subscribe", "news"))
	reader.hear("subscribe\nnews\n1\n")
	subscriber := r.subscriber()
	var consumer *conversation
	if r.jobs != nil {
		run(r.t, amqp("declare-queue", r.ports["jobs"], "--queue=jobs"))
		consumer = talkWith(r.t, amqp("consume", r.ports["jobs"], "--queue=jobs", fmt.Sprint("--count=", times+1), "cat"))
		run(r.t, amqp("publish", r.ports["jobs"], "--routing-key=jobs", "--body=first;"))
		consumer.hear("first;")
	}
	for i := range times {
		for name := range r.ports { // the brief sessions have ended
			a.metric("ambassador_sessions_active{listener="+name+"}", 1)
		}
		replace()
		a.metric(`ambassador_upgrade_sessions_total{result="carried"}`, float64((i+1)*len(r.ports)))
		a.metric(`ambassador_upgrade_sessions_total{result="ended"}`, 0)
		sql.say(fmt.Sprintf("update kept set n = n + 1; select 'round %d', n from kept;", i))
		sql.hear(fmt.Sprintf(`round %d\t%d\n`, i, 42+i))
		psql.say(fmt.Sprintf("update kept set n = n + 1; select 'round %d', n from kept;", i))
		psql.hear(fmt.Sprintf(`round %d\|%d\n`, i, 42+i))
		shell.say(fmt.Sprintf("n=$((n + 1)); echo round %d $n", i))
		shell.hear(fmt.Sprintf("round %d %d\n", i, 42+i))
		news := fmt.Sprintf("message %d", i)
		run(r.t, r.redisCLI("publish", "news", news))
		reader.hear("message\nnews\n" + news + "\n")
		if consumer != nil {
			run(r.t, amqp("publish", r.ports["jobs"], "--routing-key=jobs", "--body="+news+";"))
			consumer.hear(news + ";")
		}
	}
	sql.say("commit; select concat('still ', 'connection ', connection_id());")
	sql.hear("still " + id + "\n")
	sql.end()
	psql.say("commit; select 'still backend ' || pg_backend_pid();")
	psql.hear("still " + backend + "\n")
	psql.end()
	shell.say("echo still shell $$")
	shell.hear("still " + pid + "\n")
	shell.end()
	if now := r.subscriber(); now != subscriber || strings.Count(reader.stdout.String(), "subscribe\n") != 1 {
		r.t.Errorf("the subscription has been renewed: its client was %q and is %q, and has printed %q", subscriber, now, reader.stdout)
	}
	if consumer != nil {
		consumer.end() // it has got every message over its one connection
	}
}

// subscriber is the id and address of the one client of Redis that has a subscription.
func (r *realClients) subscriber() string {
	r.t.Helper()
	text := run(r.t, r.redisCLI("client", "list", "type", "pubsub"))
	m := regexp.MustCompile(`^id=\d+ addr=\S+`).FindString(text)
	if m == "" || strings.Contains(text, "\n") {
		r.t.Errorf("the subscribers of Redis: %q, want one", text)
	}
	return m
}

// TestUpgradeClients proves that sessions of real clients live through upgrades: a
// transaction with a temporary table of MariaDB and of PostgreSQL, a shell over SSH, a
// subscription of Redis, and, under AMBASSADOR_TEST_LONG=1, a consumer of RabbitMQ.
func TestUpgradeClients(t *testing.T) {
	onlyLinux(t)
	t.Parallel()
	_, upgrades := size(0, 3, 0, 10)
	keys := newPKI(t)
	r := newRealClients(t, keys)
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", r.config(keys)))
	for name := range r.ports {
		a.addr(name)
	}
	r.liveThrough(a, upgrades, func() { a.upgrade() })
}

// TestRestartClients is TestUpgradeClients with `systemctl restart` of the unit as it is
// shipped, in a real systemd.
func TestRestartClients(t *testing.T) {
	onlyLinux(t)
	t.Parallel()
	inContainer(t, "TestInsideRestartClients")
}

// TestInsideRestartClients runs in the container of TestRestartClients.
func TestInsideRestartClients(t *testing.T) {
	if !on(insideVariable) {
		t.Skip("TestRestartClients runs it in a container")
	}
	_, restarts := size(0, 2, 0, 5)
	var r *realClients
	s := newShipped(t, func(keys *pki) string {
		r = newRealClients(t, keys)
		return r.config(keys)
	})
	s.override("")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log:\n%s\nof sshd:\n%s", tail(s.logged(), 16<<10), tail(r.host.stderr.String(), 4<<10))
		}
	})
	s.systemctl("start", "ambassador")
	r.liveThrough(s.a, restarts, func() { s.systemctl("restart", "ambassador") })
	main, err := strconv.Atoi(strings.TrimSpace(run(t, exec.Command("systemctl", "show", "--value", "-p", "MainPID", "ambassador"))))
	if err != nil {
		t.Fatal(err)
	}
	wantPolicy(t, main, 3) // the unit permits it
}
