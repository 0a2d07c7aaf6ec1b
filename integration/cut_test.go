package integration

import (
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"
)

// nft loads rules in the namespace.
func (n network) nft(t testing.TB, rules string) {
	t.Helper()
	cmd := n.in("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	run(t, cmd)
}

var lostSession = regexp.MustCompile(`"stage":"relay","reason":"upstream_lost".*`)

// faultCut drops every packet from and to a server, while sessions with it are open.
// A quiet session outlives a cut of seconds, and ends by keepalive if the cut lasts;
// with kill_on_down it ends when health has noticed the cut. New sessions go to
// another server.
func faultCut(t *testing.T) {
	t.Parallel()
	need(t, "nft")
	keys := newPKI(t)
	here, there := newWire(t)
	far, near := there.serve(t, keys), here.serve(t, keys)
	dir := shortDir(t)
	upstream := fmt.Sprintf("endpoints: [%q, {address: %q, priority: 1}], tls: {identity: me, server_name: localhost}, connect: {attempt_timeout: 1s}, health: {interval: 500ms, idle_interval: 0s", far, near)
	a := startCmd(t, here.in(binary, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  patient: {listen: "unix:%[1]s/patient", upstream: patient}
  strict: {listen: "unix:%[1]s/strict", upstream: strict}
identities:
  me: {files: {cert: %[2]s, key: %[3]s, ca: %[4]s}}
upstreams:
  patient: {%[5]s}}
  strict: {%[5]s, kill_on_down: true}}
`, dir, keys.file("client.crt"), keys.file("client.key"), keys.file("ca.crt"), upstream))))
	a.metric("ambassador_addresses{health=healthy}", 4)
	dial := func(listener string) net.Conn {
		c, err := net.Dial("unix", dir+"/"+listener)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * patience))
		line(t, c, "hello")
		return c
	}
	held := dial("patient")
	dial("strict")
	there.nft(t, "table ip cut {\n chain in {\n  type filter hook input priority 0; policy drop;\n }\n chain out {\n  type filter hook output priority 0; policy drop;\n }\n}\n")
	began := time.Now()
	a.await(`"msg":"session".*"listener":"strict".*"reason":"killed"`)
	t.Logf("cut: with kill_on_down a session ended %v after the cut", time.Since(began).Round(10*time.Millisecond))
	for range 5 {
		dial("patient")
	}
	if n, err := sample(a.process, "ambassador_sessions_active{upstream=patient}"); err != nil || n != 6 {
		t.Errorf("%v sessions are open, %v; want the one with the server that is cut off, and 5", n, err)
	}
	if !long() {
		there.nft(t, "delete table ip cut\n")
		line(t, held, "still here")
		return
	}
	m, err := a.stderr.awaitAfter(0, lostSession, 8*time.Minute, a.exited)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("cut: by keepalive an idle session ended %v after the cut: %s", time.Since(began).Round(time.Second), m[0])
	if took := time.Since(began); took < 5*time.Minute {
		t.Errorf("lost after %v, want about 6 minutes (60 s, and 10 probes at 30 s)", took)
	}
}
