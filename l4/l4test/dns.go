package l4test

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// Zone is a DNS server on loopback whose answers can be changed.
type Zone struct {
	mu      sync.Mutex
	Hosts   map[string][]string                 // guarded by mu; name without the last dot to IPv4 addresses
	Targets map[string][]dnsmessage.SRVResource // guarded by mu
	asked   int                                 // guarded by mu
}

// ServeZone answers until the end of the test and returns its address.
func ServeZone(t *testing.T, z *Zone) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() { // ends with conn
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply, err := z.Answer(buf[:n]); err == nil {
				conn.WriteTo(reply, from)
			}
		}
	}()
	return conn.LocalAddr().String()
}

// Questions returns how many questions the server got.
func (z *Zone) Questions() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked
}

func (z *Zone) Answer(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked++
	q := m.Questions[0]
	name := strings.TrimSuffix(q.Name.String(), ".")
	m.Header.Response, m.Header.Authoritative, m.Additionals = true, true, nil
	head := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}
	_, isHost := z.Hosts[name]
	switch {
	case q.Type == dnsmessage.TypeA && isHost:
		for _, ip := range z.Hosts[name] {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: netip.MustParseAddr(ip).As4()}})
		}
	case q.Type == dnsmessage.TypeSRV && z.Targets[name] != nil:
		for _, target := range z.Targets[name] {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &target})
		}
	case !isHost:
		m.Header.RCode = dnsmessage.RCodeNameError
	}
	return m.Pack()
}

func (z *Zone) Set(name string, ips ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if ips == nil {
		delete(z.Hosts, name)
		return
	}
	z.Hosts[name] = ips
}
