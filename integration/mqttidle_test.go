package integration

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// mqtt is a client by hand, for what mosquitto_sub does not do: keepalives of
// under 5 seconds, and none at all.
type mqtt struct {
	t testing.TB
	c net.Conn
}

// newMQTT connects with a keepalive in seconds (0: none) and a clean session.
func newMQTT(t testing.TB, addr, id string, keepalive byte) *mqtt {
	t.Helper()
	c, err := dialTCP(addr)
	if err != nil {
		t.Fatal(err)
	}
	return greetMQTT(t, c, id, keepalive)
}

// greetMQTT is newMQTT on a connection that exists.
func greetMQTT(t testing.TB, c net.Conn, id string, keepalive byte) *mqtt {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	m := &mqtt{t, c}
	m.ask(fmt.Sprintf("\x10%c\x00\x04MQTT\x04\x02\x00%c\x00%c%s", 12+len(id), keepalive, len(id), id), "\x20\x02\x00\x00")
	return m
}

// ask sends a packet and wants an answer to the byte, if it is not empty.
func (m *mqtt) ask(packet, answer string) {
	m.t.Helper()
	m.c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(m.c, packet); err != nil {
		m.t.Fatal(err)
	}
	m.hear(answer)
}

func (m *mqtt) hear(want string) {
	m.t.Helper()
	m.c.SetDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	if n, err := io.ReadFull(m.c, got); !bytes.Equal(got, []byte(want)) {
		m.t.Fatalf("heard %q, %v, want %q", got[:n], err, want)
	}
}

// subscribe asks for a topic at QoS 2.
func (m *mqtt) subscribe(topic string) {
	m.t.Helper()
	m.ask(fmt.Sprintf("\x82%c\x00\x01\x00%c%s\x02", 5+len(topic), len(topic), topic), "\x90\x03\x00\x01\x02")
}

// exactlyOnce receives a message at QoS 2, with all four packets.
func (m *mqtt) exactlyOnce(topic, text string) {
	m.t.Helper()
	m.hear(fmt.Sprintf("\x34%c\x00%c%s\x00\x01%s", 4+len(topic)+len(text), len(topic), topic, text))
	m.ask("\x50\x02\x00\x01", "\x62\x02\x00\x01")
	m.ask("\x70\x02\x00\x01", "")
}

// TestMosquittoIdle: pings of a session that has nothing else to say pass for as
// many intervals as there are; a session that is silent altogether lives on, where
// timeouts.idle is off, and ends with that reason, where it is not; and the end
// that a broker makes of a client that no longer pings comes when the broker makes
// it. The time is real: ten intervals of a second, or ten minutes.
func TestMosquittoIdle(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	d := newMosquitto(t, keys)
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  front: {listen: "127.0.0.1:0", upstream: up}
  strict: {listen: "127.0.0.1:0", upstream: up, timeouts: {idle: 3s}}
identities:
  me: {files: {cert: %s, key: %s, ca: %s}}
upstreams:
  up: {endpoints: [%q], tls: {identity: me, server_name: localhost}}
`, keys.file("client.crt"), keys.file("client.key"), keys.file("ca.crt"), d.addr())))
	intervals := 10
	if long() {
		intervals = 600
	}
	silent := newMQTT(t, a.addr("front"), "silent", 0)
	silent.subscribe("news")
	doomed := newMQTT(t, a.addr("strict"), "doomed", 0)
	doomed.subscribe("news")
	mute := newMQTT(t, a.addr("front"), "mute", 1) // promises to ping, and does not
	pinging := []*mqtt{newMQTT(t, a.addr("front"), "pinging", 1), newMQTT(t, a.addr("strict"), "pinging2", 1)}
	begin := time.Now()
	tick := time.NewTicker(900 * time.Millisecond)
	defer tick.Stop()
	for range intervals { // of which each is a real one
		<-tick.C
		for _, m := range pinging {
			m.ask("\xc0\x00", "\xd0\x00")
		}
	}
	idle := time.Since(begin).Round(time.Second)
	sessions, _ := a.ask("sessions", "--json")
	for _, m := range append(pinging, silent) {
		if !strings.Contains(sessions, `"client": "`+m.c.LocalAddr().String()+`"`) {
			t.Errorf("after %v a session is gone:\n%s", idle, sessions)
		}
	}
	mute.c.SetDeadline(time.Now().Add(patience))
	doomed.c.SetDeadline(time.Now().Add(patience))
	if n, err := mute.c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the broker's end of a client that does not ping: %d bytes, %v", n, err)
	}
	mute.c.Close()
	if r := a.endsAs(mute.c, "relay", "closed"); r.FirstClose != "upstream" {
		t.Errorf("the broker's end of a client that does not ping: %+v", r)
	}
	resetByPeer(t, doomed.c)
	a.endsAs(doomed.c, "relay", "idle")
	_, port, _ := net.SplitHostPort(a.addr("front"))
	run(t, exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-q", "2", "-t", "news", "-m", "at last"))
	silent.exactlyOnce("news", "at last")
	t.Logf("mqtt: %d keepalives of 1 s passed on each of two sessions in %v; a session without a byte lived as long", intervals, idle)
}
