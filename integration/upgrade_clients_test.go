package integration

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
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

// TestUpgradeClients proves that sessions of real clients live through upgrades: a
// transaction of MariaDB with its temporary table, a shell over SSH, a subscription of
// Redis, and, under AMBASSADOR_TEST_LONG=1, a consumer of RabbitMQ. All but SSH are over
// TLS that the ambassador originates.
func TestUpgradeClients(t *testing.T) {
	onlyLinux(t)
	t.Parallel()
	_, upgrades := size(0, 3, 0, 10)
	need(t, "redis-cli")
	keys := newPKI(t)
	db, cache := newMariaDB(t, keys), startRedis(t, keys, 100)
	host, flags := startSSH(t)
	jobs := &daemon{port: "1"}
	if long() {
		jobs = newRabbitMQ(t, keys).daemon
	}
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  db: {listen: "127.0.0.1:0", upstream: db}
  ssh: {listen: "127.0.0.1:0", upstream: ssh}
  cache: {listen: "127.0.0.1:0", upstream: cache}
  jobs: {listen: "127.0.0.1:0", upstream: jobs}
upstreams:
  db: {endpoints: ["%[1]s"], tls: &tls {identity: me, server_name: localhost, ca: %[5]s}, starttls: mysql}
  ssh: {endpoints: ["%[2]s"]}
  cache: {endpoints: ["%[3]s"], tls: *tls}
  jobs: {endpoints: ["%[4]s"], tls: *tls}
identities: {me: {files: {cert: %[6]s, key: %[7]s}}}
`, db.addr(), host.addr(), cache.addr, jobs.addr(), keys.file("ca.crt"), keys.file("client.crt"), keys.file("client.key"))))
	port := func(listener string) string {
		_, p, _ := net.SplitHostPort(a.addr(listener))
		return p
	}

	sql := talkWith(t, db.client(port("db"), "native", "--unbuffered", "--skip-column-names", "db"))
	sql.say("begin; create temporary table kept (n int); insert into kept values (41); select concat('connection ', connection_id());")
	id := sql.hear(`connection \d+`)
	shell := talkWith(t, exec.Command("ssh", append(append([]string{"-p", port("ssh")}, flags...), "127.0.0.1", "sh")...))
	shell.say("n=41; echo shell $$")
	pid := shell.hear(`shell \d+`)
	reader := talkWith(t, exec.Command("redis-cli", "-p", port("cache"), "subscribe", "news"))
	reader.hear("subscribe\nnews\n1\n")
	clients := 3
	var consumer *conversation
	if long() {
		run(t, amqp("declare-queue", port("jobs"), "--queue=jobs"))
		consumer = talkWith(t, amqp("consume", port("jobs"), "--queue=jobs", fmt.Sprint("--count=", upgrades+1), "cat"))
		run(t, amqp("publish", port("jobs"), "--routing-key=jobs", "--body=first;"))
		consumer.hear("first;")
		clients++
	}
	for i := range upgrades {
		if r := a.upgrade(); r.Carried < clients || r.Ended != 0 {
			t.Fatalf("upgrade: %+v", r)
		}
		sql.say(fmt.Sprintf("update kept set n = n + 1; select 'round %d', n from kept;", i))
		sql.hear(fmt.Sprintf(`round %d\t%d`, i, 42+i))
		shell.say(fmt.Sprintf("n=$((n + 1)); echo round %d $n", i))
		shell.hear(fmt.Sprintf("round %d %d", i, 42+i))
		news := fmt.Sprintf("message %d", i)
		run(t, exec.Command("redis-cli", "-p", port("cache"), "publish", "news", news))
		reader.hear("message\nnews\n" + news + "\n")
		if long() {
			run(t, amqp("publish", port("jobs"), "--routing-key=jobs", "--body="+news+";"))
			consumer.hear(news + ";")
		}
	}
	sql.say("commit; select concat('still ', 'connection ', connection_id());")
	sql.hear("still " + id + "\n")
	sql.end()
	shell.say("echo still shell $$")
	shell.hear("still " + pid + "\n")
	shell.end()
	if long() {
		consumer.end()
	}
}
