package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// rabbitmq is an AMQP broker with a node name and an epmd of its own.
type rabbitmq struct {
	*daemon
	sbin string   // the folder of its programs, past the ones that become another user
	env  []string // for all of them
}

// newRabbitMQ starts a broker, which speaks TLS at once and demands our
// certificate; without keys it has no TLS.
func newRabbitMQ(t testing.TB, keys *pki) *rabbitmq {
	t.Helper()
	need(t, "epmd", "amqp-publish", "amqp-get", "amqp-consume", "amqp-declare-queue")
	found, _ := filepath.Glob("/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin")
	if len(found) == 0 {
		missing(t, "rabbitmq-server")
	}
	r := &rabbitmq{daemon: newDaemon(t), sbin: found[0]}
	r.within = 4 * patience
	listeners := fmt.Sprintf("listeners.tcp.1 = %s\n", r.addr())
	if keys != nil {
		listeners = fmt.Sprintf("listeners.tcp = none\nlisteners.ssl.1 = %s\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n"+
			"ssl_options.cacertfile = %s\nssl_options.certfile = %s\nssl_options.keyfile = %s\n", r.addr(), keys.file("ca.crt"), keys.file("server.crt"), keys.file("server.key"))
	}
	r.write(t, "rabbitmq.conf", listeners+"log.console = true\nlog.file = false\n")
	r.environment(t)
	r.command = func() *exec.Cmd { return r.program("rabbitmq-server") }
	r.startNames(t)
	begin := time.Now()
	r.start(t)
	t.Logf("rabbitmq: started in %v", time.Since(begin).Round(time.Millisecond))
	return r
}

// environment keeps all that the broker writes in its folder, and its ports, but
// for the one of AMQP, on loopback and out of the way of others.
func (r *rabbitmq) environment(t testing.TB) {
	t.Helper()
	names, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	r.env = append(os.Environ(), "LC_ALL=C.UTF-8", "HOME="+r.dir, "ERL_EPMD_ADDRESS=127.0.0.1", "ERL_EPMD_PORT="+names,
		"RABBITMQ_DIST_PORT="+nodes, "RABBITMQ_NODENAME=amb"+r.port+"@localhost", "RABBITMQ_CONF_ENV_FILE="+r.write(t, "env", ""),
		"RABBITMQ_CONFIG_FILE="+r.file("rabbitmq.conf"), "RABBITMQ_ADVANCED_CONFIG_FILE="+r.file("none"), "RABBITMQ_MNESIA_BASE="+r.file("mnesia"),
		"RABBITMQ_LOG_BASE="+r.file("log"), "RABBITMQ_ENABLED_PLUGINS_FILE="+r.write(t, "plugins", "[].\n"), "RABBITMQ_PID_FILE="+r.file("pid"),
		"RABBITMQ_GENERATED_CONFIG_DIR="+r.file("config"), "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 2:2 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}")
}

// startNames starts epmd, which the broker would start by itself and leave behind.
func (r *rabbitmq) startNames(t testing.TB) {
	t.Helper()
	cmd := exec.Command("epmd")
	cmd.Env = r.env
	epmd, err := launch(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		epmd.signal(os.Kill)
		epmd.exit(patience)
	})
}

func (r *rabbitmq) program(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(r.sbin, name), args...)
	cmd.Env, cmd.Dir = r.env, r.dir
	return cmd
}

// amqp is one of the clients of Debian's amqp-tools.
func amqp(program, port string, args ...string) *exec.Cmd {
	return exec.Command("amqp-"+program, append([]string{"--server=127.0.0.1", "--port=" + port, "--username=guest", "--password=guest"}, args...)...)
}

// TestRabbitMQ proves that AMQP 0-9-1 works as it does without TLS: queues,
// messages there and back, refusals in the broker's own words, and a message that
// comes long after it was asked for.
func TestRabbitMQ(t *testing.T) {
	t.Parallel()
	if !long() {
		t.Skip("RabbitMQ takes 6 s to start by itself, and over 30 among all the other tests: AMBASSADOR_TEST_LONG=1 runs it")
	}
	keys := newPKI(t)
	r, twin := newRabbitMQ(t, keys), newRabbitMQ(t, nil)
	_, port := front(t, r.daemon, keys)
	both := func(program string, input string, args ...string) string {
		t.Helper()
		direct, through := amqp(program, twin.port, args...), amqp(program, port, args...)
		direct.Stdin, through.Stdin = strings.NewReader(input), strings.NewReader(input)
		return twins(t, direct, through, twin.port, "PORT", port, "PORT")
	}
	large := strings.Repeat("0123456789abcdef", 8<<20/16)
	both("declare-queue", "", "--queue=jobs")
	both("publish", "", "--routing-key=jobs", "--body=one")
	both("publish", large, "--routing-key=jobs")
	if got := both("get", "", "--queue=jobs"); got != "exit code 0\none" {
		t.Errorf("amqp-get says %q", got)
	}
	if got := both("get", "", "--queue=jobs"); got != "exit code 0\n"+large {
		t.Errorf("%d bytes came back of %d, or others", len(got), len(large))
	}
	both("get", "", "--queue=jobs")    // there is none left
	both("get", "", "--queue=nowhere") // 404
	if got := both("get", "", "--queue=jobs", "--password=wrong"); !strings.Contains(got, "403") {
		t.Errorf("a wrong password: %s", got)
	}
	r.consumes(t, port)
	if out, stderr, err := try(amqp("get", r.port, "--queue=jobs")); err == nil {
		t.Errorf("the broker takes plaintext: %s%s", out, stderr)
	}
	rejected(t, r.daemon, keys, "", "upstream_tls_rejected", func(port string) *exec.Cmd { return amqp("get", port, "--queue=jobs") })
}

// consumes: a client that waits gets what comes later; meanwhile the broker itself
// says that its connection has TLS, and whose certificate it saw.
func (r *rabbitmq) consumes(t testing.TB, port string) {
	t.Helper()
	consumer, err := launch(amqp("consume", port, "--queue=jobs", "--count=1", "cat"))
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.signal(os.Kill)
	want := regexp.MustCompile(`(?m)^true\ttlsv1\.3\tCN=app\tguest$`)
	err = eventually(2*patience, func() error {
		text, stderr, err := try(r.program("rabbitmqctl", "--quiet", "--no-table-headers", "list_connections", "ssl", "ssl_protocol", "peer_cert_subject", "user"))
		if err != nil || !want.MatchString(text) {
			return fmt.Errorf("the broker's connections: %q %s %v", text, stderr, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	run(t, amqp("publish", port, "--routing-key=jobs", "--body=at last"))
	if code, err := consumer.exit(patience); code != 0 || err != nil || !strings.HasPrefix(consumer.stdout.String(), "at last") {
		t.Errorf("amqp-consume: exit code %d, %v, %q %q", code, err, consumer.stdout, consumer.stderr)
	}
}
