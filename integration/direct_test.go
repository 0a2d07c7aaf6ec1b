package integration

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// newRedis starts a Redis server, which speaks TLS at once and demands our
// certificate; without keys it has no TLS.
func newRedis(t testing.TB, keys *pki) *daemon {
	t.Helper()
	server := sbin(t, "redis-server")
	need(t, "redis-cli", "redis-benchmark")
	d := newDaemon(t)
	args := []string{"--bind", "127.0.0.1", "--dir", d.dir, "--save", "", "--appendonly", "no"}
	if keys == nil {
		args = append(args, "--port", d.port)
	} else {
		args = append(args, "--port", "0", "--tls-port", d.port, "--tls-auth-clients", "yes", "--tls-cert-file", keys.file("server.crt"),
			"--tls-key-file", keys.file("server.key"), "--tls-ca-cert-file", keys.file("ca.crt"))
	}
	d.command = func() *exec.Cmd { return exec.Command(server, args...) }
	d.start(t)
	return d
}

func redisCLI(port string, args ...string) *exec.Cmd {
	return exec.Command("redis-cli", append([]string{"-h", "127.0.0.1", "-p", port, "--no-raw"}, args...)...)
}

// TestRedis proves that a protocol without STARTTLS works as it does without TLS:
// requests, a load, unsolicited messages, a late answer.
func TestRedis(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	d, twin := newRedis(t, keys), newRedis(t, nil)
	_, port := front(t, d, keys)
	both := func(args ...string) string {
		t.Helper()
		return twins(t, redisCLI(twin.port, args...), redisCLI(port, args...))
	}
	both("set", "a", strings.Repeat("x", 100_000))
	both("get", "a")
	both("lpush", "a", "b") // an error: it is no list
	both("eval", "return {1, {2, 'three'}, false}", "0")
	for _, p := range []string{twin.port, port} {
		text := run(t, exec.Command("redis-benchmark", "-h", "127.0.0.1", "-p", p, "-t", "set,get", "-n", "5000", "-c", "20", "-P", "8", "-q"))
		if n := strings.Count(text, "requests per second"); n != 2 {
			t.Errorf("redis-benchmark says %q", text)
		}
	}

	sub, err := launch(redisCLI(port, "subscribe", "news"))
	if err != nil {
		t.Fatal(err)
	}
	defer sub.signal(os.Kill)
	await := func(p *process, re string) {
		t.Helper()
		if _, err := p.stdout.awaitAfter(0, regexp.MustCompile(re), patience, p.exited); err != nil {
			t.Fatal(err, p.stdout, p.stderr)
		}
	}
	await(sub, "\\(integer\\) 1")
	run(t, redisCLI(port, "publish", "news", "it is out"))
	await(sub, "it is out")

	late := redisCLI(port, "blpop", "queue", "30") // answered long after it was asked
	pop, err := launch(late)
	if err != nil {
		t.Fatal(err)
	}
	defer pop.signal(os.Kill)
	if err := eventually(patience, func() error {
		if text, _, err := try(redisCLI(twin.port, "ping")); err != nil {
			return fmt.Errorf("%s %w", text, err)
		}
		text, _, err := try(redisCLI(port, "--raw", "info", "clients"))
		if err != nil || !strings.Contains(text, "blocked_clients:1") {
			return fmt.Errorf("%s %v", text, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	run(t, redisCLI(port, "rpush", "queue", "at last"))
	await(pop, "at last")
	rejected(t, d, keys, "", "upstream_tls_rejected", func(port string) *exec.Cmd { return redisCLI(port, "-e", "get", "a") })
	for _, protocol := range []string{"postgres", "mysql", "ldap", "smtp", "imap", "pop3", "xmpp"} {
		t.Run("TLS at once, and --starttls "+protocol, func(t *testing.T) {
			t.Parallel()
			firstContact(t, d, keys, protocol, xmppOpen, "remove starttls")
		})
	}
}

// newMosquitto starts an MQTT broker, which speaks TLS at once and calls its
// clients by their certificate's name; without keys it has no TLS.
func newMosquitto(t testing.TB, keys *pki) *daemon {
	t.Helper()
	server := sbin(t, "mosquitto")
	need(t, "mosquitto_sub", "mosquitto_pub")
	d := newDaemon(t)
	conf := fmt.Sprintf("listener %s 127.0.0.1\nlog_type all\nlog_dest stderr\nallow_anonymous true\n", d.port)
	if keys != nil {
		conf += fmt.Sprintf("cafile %s\ncertfile %s\nkeyfile %s\nrequire_certificate true\nuse_identity_as_username true\n",
			d.readable(t, keys, "ca.crt"), d.readable(t, keys, "server.crt"), d.readable(t, keys, "server.key"))
	}
	path := d.write(t, "mosquitto.conf", conf)
	d.command = func() *exec.Cmd { return exec.Command(server, "-c", path) }
	d.start(t)
	return d
}

// readable copies one of the pki's files to where a server without root's rights
// can read it.
func (d *daemon) readable(t testing.TB, keys *pki, name string) string {
	t.Helper()
	text, err := os.ReadFile(keys.file(name))
	if err != nil {
		t.Fatal(err)
	}
	return d.write(t, name, string(text))
}

// TestMosquitto proves that MQTT works as it does without TLS: QoS 2, a message
// of a MiB, and pings in a session that has nothing else to say.
func TestMosquitto(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	d, twin := newMosquitto(t, keys), newMosquitto(t, nil)
	_, port := front(t, d, keys)
	message := writeFile(t, "message", strings.Repeat("0123456789abcdef", 1<<20/16))
	session := func(port string) string {
		sub, err := launch(exec.Command("stdbuf", "-oL", "mosquitto_sub", "-h", "127.0.0.1", "-p", port, "-i", "subscriber", "-k", "5", "-q", "2", "-t", "news/#", "-C", "3", "-v", "-d"))
		if err != nil {
			t.Fatal(err)
		}
		defer sub.signal(os.Kill)
		for _, step := range []struct {
			await   string
			publish []string
		}{
			{"SUBACK", []string{"-m", "one"}}, {"news/x one", []string{"-f", message}}, {"PINGRESP", []string{"-m", "three"}},
		} {
			if _, err := sub.stdout.awaitAfter(0, regexp.MustCompile(step.await), patience, sub.exited); err != nil {
				t.Fatal(err, tail(sub.stdout.String(), 2000), sub.stderr)
			}
			run(t, exec.Command("mosquitto_pub", append([]string{"-h", "127.0.0.1", "-p", port, "-q", "2", "-t", "news/x"}, step.publish...)...))
		}
		if code, err := sub.exit(patience); code != 0 || err != nil {
			t.Errorf("mosquitto_sub ended with %d, %v", code, err)
		}
		return regexp.MustCompile(`(?m)^Client .*$`).ReplaceAllString(sub.stdout.String(), "") // in whose order the pings stand
	}
	if got, want := session(port), session(twin.port); got != want || len(got) < 1<<20 {
		t.Errorf("through the ambassador %d bytes:\n%s\nto the twin %d:\n%s", len(got), tail(got, 500), len(want), tail(want, 500))
	}
	if _, err := d.stderr.awaitAfter(0, regexp.MustCompile(`as subscriber \(.*u'app'`), patience, d.exited); err != nil {
		t.Errorf("%v in\n%s", err, tail(d.stderr.String(), 2000))
	}
	rejected(t, d, keys, "", "upstream_tls_rejected", func(port string) *exec.Cmd {
		return exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-t", "x", "-m", "x")
	})
}
