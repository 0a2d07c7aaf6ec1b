package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Source is what counts as one client, for limits and for failed logins: an IPv4
// address; an IPv6 /64, since a host can use every address of its own; the user of the
// process that connects through a unix socket. It is comparable. The zero value is a
// client on a unix socket whose user is not known.
type Source struct {
	network netip.Prefix // not valid on a unix socket
	uid     uint32
	local   bool // uid is known
}

// SourceOf is the source of an address. An IPv4-mapped address counts as IPv4.
func SourceOf(a netip.Addr) Source {
	a = a.Unmap()
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return Source{}
	}
	return Source{network: p}
}

// SourceOfUser is the source of a local process: the user it runs as.
func SourceOfUser(uid uint32) Source { return Source{uid: uid, local: true} }

// MarshalText writes the source: "10.0.0.1/32", "uid 1000"; empty for the zero value.
func (s Source) MarshalText() ([]byte, error) {
	switch {
	case s.local:
		return fmt.Appendf(nil, "uid %d", s.uid), nil
	case !s.network.IsValid():
		return nil, nil
	}
	return s.network.MarshalText()
}

// UnmarshalText reads what MarshalText writes.
func (s *Source) UnmarshalText(b []byte) error {
	*s = Source{}
	if id, ok := strings.CutPrefix(string(b), "uid "); ok {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return fmt.Errorf("the source of a client: %w", err)
		}
		*s = SourceOfUser(uint32(n))
		return nil
	}
	if len(b) == 0 {
		return nil
	}
	p, err := netip.ParsePrefix(string(b))
	if err != nil {
		return fmt.Errorf("the source of a client: %w", err)
	}
	*s = SourceOf(p.Addr())
	return nil
}
