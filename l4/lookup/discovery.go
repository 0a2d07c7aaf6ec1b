package lookup

import (
	"context"
	"net/netip"
)

// Discovery is the source of an endpoint's addresses, if they are pushed instead of
// looked up.
type Discovery struct {
	// Host is what the certificate of a server must be for, by default.
	Host string
	// Follow calls found with all addresses that take new sessions now, each time they
	// change, until ctx ends. They replace those known; if there are none, the error says
	// why. It calls failed when the source cannot be asked: the addresses known stay. It
	// makes one call at a time, and none after it has returned.
	Follow func(ctx context.Context, found func(all []Discovered, none error), failed func(error))
}

// Discovered is an address that takes new sessions.
type Discovered struct {
	Addr netip.AddrPort
	// Distance orders addresses of one priority: those with a higher one are used only if
	// no address with a lower one is usable. It is at most MaxDistance.
	Distance int
	// Other says that the address is not of the preferred address family.
	Other bool
}

// MaxDistance is the greatest distance of an address.
const MaxDistance = 3
