package nameserver

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// reply is the answer to a query.
type reply struct {
	addrs     []string // those of the query's family are sent
	cname     string
	unknown   bool          // there is no such name
	silent    bool          // no answer is sent
	truncated bool          // over UDP
	wait      chan struct{} // nil: the answer is sent at once
}

// server is a name server on loopback, over UDP and TCP, whose answers a test decides.
type server struct {
	addr    string
	reply   func(name string, kind dnsmessage.Type) reply
	done    chan struct{} // closed at the end of the test
	queries atomic.Int64
}

func serve(t *testing.T, answer func(name string, kind dnsmessage.Type) reply) *server {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: tcp.Addr().String(), reply: answer, done: make(chan struct{})}
	var work sync.WaitGroup
	work.Go(func() { s.udp(udp) })
	work.Go(func() { s.tcp(tcp) })
	t.Cleanup(func() { close(s.done); udp.Close(); tcp.Close(); work.Wait() })
	return s
}

func (s *server) udp(conn net.PacketConn) {
	var work sync.WaitGroup
	defer work.Wait()
	b := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		query := slices.Clone(b[:n])
		work.Go(func() {
			if text := s.answer(query, true); text != nil {
				conn.WriteTo(text, from)
			}
		})
	}
}

func (s *server) tcp(ln net.Listener) {
	var work sync.WaitGroup
	defer work.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		work.Go(func() {
			defer c.Close()
			query, err := readMessage(c)
			if err != nil {
				return
			}
			if text := s.answer(query[2:], false); text != nil {
				c.Write(binary.BigEndian.AppendUint16(nil, uint16(len(text))))
				c.Write(text)
			}
			io.Copy(io.Discard, c) // until the client closes
		})
	}
}

func (s *server) answer(query []byte, udp bool) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil {
		return nil
	}
	s.queries.Add(1)
	q := m.Questions[0]
	r := s.reply(strings.ToLower(strings.TrimSuffix(q.Name.String(), ".")), q.Type)
	if r.wait != nil {
		select {
		case <-r.wait:
		case <-s.done:
			return nil
		}
	}
	if r.silent {
		return nil
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	if r.unknown {
		m.RCode = dnsmessage.RCodeNameError
	}
	if r.truncated && udp {
		m.Truncated, r.addrs = true, nil
	}
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}
	if r.cname != "" {
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(r.cname)}})
	}
	for _, text := range r.addrs {
		a := netip.MustParseAddr(text)
		switch {
		case a.Is4() && q.Type == dnsmessage.TypeA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	text, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return text
}

const (
	four = "192.0.2.1"
	six  = "2001:db8::1"
)

func texts(a Answer) string {
	var all []string
	for _, addr := range a.Addrs {
		all = append(all, addr.Unmap().String())
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// An address of one family is not lost because the query for the other family is never
// answered.
func TestOneFamilyIsSilent(t *testing.T) {
	both := reply{addrs: []string{four, six}}
	for _, tt := range []struct {
		name    string
		a, aaaa reply
		want    string
		partial bool
	}{
		{"both answer", both, both, four + " " + six, false},
		{"AAAA is silent", both, reply{silent: true}, four, true},
		{"A is silent", reply{silent: true}, both, six, true},
		{"AAAA is silent, and A comes over TCP", reply{addrs: []string{four}, truncated: true}, reply{silent: true}, four, true},
		{"AAAA is silent over TCP", both, reply{silent: true, truncated: true}, four, true},
		{"no AAAA", both, reply{}, four, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(_ string, kind dnsmessage.Type) reply {
				if kind == dnsmessage.TypeA {
					return tt.a
				}
				return tt.aaaa
			})
			delay := Patient // both answers come
			if tt.partial {
				delay = Quick
			}
			got, err := New([]string{s.addr}, nil).Addresses(t.Context(), "db.test.", delay)
			if err != nil || texts(got) != tt.want || got.Partial != tt.partial {
				t.Errorf("%v, partial %v, %v; want %s", got.Addrs, got.Partial, err, tt.want)
			}
		})
	}
}

// A CNAME without an address is no address: the other family is awaited.
func TestCNAMEIsNoAddress(t *testing.T) {
	late := make(chan struct{})
	s := serve(t, func(_ string, kind dnsmessage.Type) reply {
		if kind == dnsmessage.TypeA {
			time.AfterFunc(3*Quick, func() { close(late) })
			return reply{cname: "six.test."}
		}
		return reply{addrs: []string{six}, wait: late}
	})
	if got, err := New([]string{s.addr}, nil).Addresses(t.Context(), "db.test.", Quick); err != nil || texts(got) != six || got.Partial {
		t.Errorf("%v, partial %v, %v", got.Addrs, got.Partial, err)
	}
}

// Two of three name servers are dead.
func TestTwoOfThreeServersAreDead(t *testing.T) {
	dead := func(string, dnsmessage.Type) reply { return reply{silent: true} }
	alive := serve(t, func(string, dnsmessage.Type) reply { return reply{addrs: []string{four}} })
	servers := []string{serve(t, dead).addr, serve(t, dead).addr, alive.addr}
	if got, err := New(servers, nil).Addresses(t.Context(), "db.test.", Quick); err != nil || texts(got) != four {
		t.Errorf("%v, %v", got, err)
	}
}

// Go's resolver refuses labels that end in a dash.
func TestLabelsThatEndInADash(t *testing.T) {
	s := serve(t, func(name string, kind dnsmessage.Type) reply {
		if name == "a-.b-.test" {
			return reply{addrs: []string{four, six}, truncated: kind == dnsmessage.TypeA}
		}
		return reply{unknown: true}
	})
	r := New([]string{s.addr}, nil)
	for _, name := range []string{"a-.b-.test.", "A-.b-.test."} {
		if got, err := r.Addresses(t.Context(), name, Quick); err != nil || texts(got) != four+" "+six {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	_, err := r.Addresses(t.Context(), "gone-.test.", Quick)
	if d, ok := errors.AsType[*net.DNSError](err); !ok || !d.IsNotFound || d.Name != "gone-.test." || d.Server != s.addr {
		t.Errorf("%v", err)
	}
	if _, err := r.Addresses(t.Context(), "a_.b_.test.", Quick); !isNotFound(err) {
		t.Errorf("another name: %v", err)
	}
}

// Callers of one name share a lookup, and it ends when the last of them has gone.
func TestCallersShareALookup(t *testing.T) {
	asked, answer := make(chan struct{}, 100), make(chan struct{})
	s := serve(t, func(string, dnsmessage.Type) reply {
		asked <- struct{}{}
		return reply{addrs: []string{four, six}, wait: answer}
	})
	r := New([]string{s.addr}, nil)
	first, leave := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	go func() { _, err := r.Addresses(first, "db.test.", Quick); errs <- err }()
	<-asked
	<-asked // both families
	got := make(chan Answer, 1)
	go func() {
		a, err := r.Addresses(t.Context(), "db.test.", Quick)
		got <- a
		errs <- err
	}()
	for joined := false; !joined; {
		r.mu.Lock()
		joined = r.shared[question{"db.test.", Quick}].waiting == 2
		r.mu.Unlock()
	}
	leave()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("the first caller: %v", err)
	}
	close(answer)
	if a, err := <-got, <-errs; err != nil || texts(a) != four+" "+six {
		t.Errorf("%v, %v", a, err)
	}
	if n := s.queries.Load(); n != 2 {
		t.Errorf("%d queries for two callers, want 2", n)
	}
	if len(r.shared) != 0 {
		t.Errorf("%d lookups are left", len(r.shared))
	}
}

func TestServersIn(t *testing.T) {
	for text, want := range map[string]string{
		"":                     "127.0.0.1:53 [::1]:53",
		"search a.test\n":      "127.0.0.1:53 [::1]:53",
		"nameserver 10.0.0.1":  "10.0.0.1:53",
		"nameserver\t::1 x\n#": "[::1]:53",
		"# nameserver 1.1.1.1\n;nameserver 1.1.1.1\nnameserver fe80::1%eth0\nnameserver x\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n": "[fe80::1%eth0]:53 10.0.0.2:53 10.0.0.3:53",
	} {
		if got := strings.Join(serversIn(text), " "); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// FuzzExchange asserts that no message of a server, and no length before it, disturbs
// what reads it.
func FuzzExchange(f *testing.F) {
	name := dnsmessage.MustNewName("db.test.")
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, Response: true}, Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		Answers: []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET}, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}}}}}
	good, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:headSize+3])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, message []byte) {
		x := newExchange(t.Context(), "", time.Hour)
		defer x.close()
		x.setAlias("a-.test")
		c := conn{exchange: x, id: 7, kind: dnsmessage.TypeA}
		size := len(message)
		c.heard(message)
		if len(message) != size {
			t.Fatal("the size changed")
		}
		readMessage(strings.NewReader(string(message)))
		(&conn{exchange: x}).sent(message)
	})
}

// A panic while a server is asked is a failure of that server.
func TestPanicOfALookup(t *testing.T) {
	caught := errors.New("a panic")
	catch := func(body func()) (err error) {
		defer func() {
			if recover() != nil {
				err = caught
			}
		}()
		body()
		return nil
	}
	r := New([]string{"bad", "good"}, catch)
	got, err := ask(t.Context(), r, "db.test", func(_ context.Context, server string) (string, error) {
		if server == "bad" {
			panic("a bug")
		}
		return server, nil
	})
	if got != "good" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := ask(t.Context(), r, "db.test", func(context.Context, string) (string, error) { panic("a bug") }); err != caught {
		t.Errorf("both servers panic: %v", err)
	}
}
