package integration

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"
)

// nameserver answers for names under test, over UDP.
type nameserver struct {
	conn  net.PacketConn
	addrs map[string]string // IPv4 addresses, by the name in lower case
}

func newNameserver(addr string, addrs map[string]string) (*nameserver, error) {
	conn, err := net.ListenPacket("udp", addr)
	return &nameserver{conn, addrs}, err
}

// startNameserver starts one that ends with the test.
func startNameserver(t testing.TB, addrs map[string]string) *nameserver {
	t.Helper()
	n, err := newNameserver("127.0.0.1:0", addrs)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends with the socket
		defer close(done)
		n.serve()
	}()
	t.Cleanup(func() { n.conn.Close(); <-done })
	return n
}

func (n *nameserver) addr() string { return n.conn.LocalAddr().String() }

func (n *nameserver) serve() {
	b := make([]byte, 1500)
	for {
		size, from, err := n.conn.ReadFrom(b)
		if err != nil {
			return
		}
		if answer := n.answer(b[:size]); answer != nil {
			n.conn.WriteTo(answer, from)
		}
	}
}

// answer is the answer to a query of one question: its address for type A, no
// record for other types, no such name for other names (RFC 1035, 4.1).
func (n *nameserver) answer(query []byte) []byte {
	const header, typeA = 12, 1
	if len(query) < header+5 {
		return nil
	}
	var name []byte
	at := header
	for at < len(query) && query[at] != 0 {
		end := min(at+1+int(query[at]), len(query))
		name, at = append(append(name, query[at+1:end]...), '.'), end
	}
	if at+5 > len(query) {
		return nil
	}
	question := query[header : at+5]
	ip, known := n.addrs[string(bytes.ToLower(bytes.TrimSuffix(name, []byte("."))))]
	out := append(append([]byte{}, query[:2]...), 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0) // a response with one question
	out = append(out, question...)
	switch {
	case !known:
		out[3] |= 3
	case bytes.HasSuffix(question, []byte{0, typeA, 0, 1}):
		out[7] = 1
		out = append(out, 0xc0, header, 0, typeA, 0, 1, 0, 0, 0, 60, 0, 4) // its name is the question's; 60 s
		out = append(out, netip.MustParseAddr(ip).AsSlice()...)
	}
	return out
}

// TestNames proves that names are resolved by dns.servers, by the next one if one is
// dead; that /etc/hosts is honoured, too; and that an error names a missing name.
func TestNames(t *testing.T) {
	t.Parallel()
	needNetcat(t)
	ns := startNameserver(t, map[string]string{"db.ambassador.test": "127.0.0.1"})
	srv := startServer(t, nil, echoLines)
	_, port, _ := net.SplitHostPort(srv.addr)
	dead := closedPort(t).addr
	config := fmt.Sprintf(`
dns: {servers: ["%s", "%s"]}
listeners:
  front: {listen: "127.0.0.1:0", upstream: named}
  hosts: {listen: "127.0.0.1:0", upstream: hosts}
  wrong: {listen: "127.0.0.1:0", upstream: wrong}
upstreams:
  named: {endpoints: ["db.ambassador.test:%s"]}
  hosts: {endpoints: ["localhost:%s"]}
  wrong: {endpoints: ["typo.ambassador.test:%s"], required: false}
`, dead, ns.addr(), port, port, port)
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", config))
	for _, name := range []string{"front", "hosts"} {
		if _, got := netcat(t, a.addr(name), "hello\n"); got != "hello\n" {
			t.Errorf("through %s: %q", name, got)
		}
	}
	client, _ := netcat(t, a.addr("wrong"), "hello\n")
	rec, err := ending(a.process, peer{client: client}, "dial", "dns")
	if err != nil {
		t.Error(err)
	}
	if rec.Address != "typo.ambassador.test:"+port {
		t.Errorf("the record names %q", rec.Address)
	}
	a.metric("ambassador_establish_seconds_count{upstream=named,phase=dns}", 1)
	if _, code := a.ask("wait"); code != 0 {
		t.Error("it is not ready")
	}
}
