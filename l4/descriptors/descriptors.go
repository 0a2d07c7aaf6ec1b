package descriptors

import (
	"math"
	"runtime"
	"slices"
	"syscall"

	"ambassador/l4/bind"
	"ambassador/l4/upstream"
)

// Limit is how many descriptors the process may have open. Go raises the soft limit to
// the hard limit at the start. math.MaxInt32 stands for no limit.
func Limit() int {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil || r.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return int(r.Cur)
}

// The descriptors that the server uses besides those of sessions.
const (
	ownDescriptors      = 24 // standard streams, Go's poller, the log, and files that are open briefly
	loopDescriptors     = 2  // an epoll and an eventfd for each processor
	listenerDescriptors = 2  // an inherited listener keeps systemd's descriptor too
	literalDescriptors  = 1  // a probe of the address
	nameDescriptors     = 6  // probes of the addresses, and a lookup that asks for A and AAAA
	lookupDescriptors   = 4  // a session's lookup, which may ask two servers for A and AAAA
)

// Lookups is how many lookups of names that clients ask for may be in flight.
func Lookups(limit int) int { return min(max(limit/64, 4), 256) }

// Needs is the part of a configuration that decides how many descriptors it needs.
type Needs struct {
	Reserved  int      // by the caller, for what is not the server's
	Addresses []string // of all listeners, as the configuration spells them
	Upstreams []upstream.Config
}

// besides is how many descriptors sessions must leave free for the rest of the process,
// so that each session can open its own. It does not count the second dial of a session
// that races two address families: that dial is short.
func (n *Needs) besides(limit int) int {
	all := ownDescriptors + loopDescriptors*runtime.GOMAXPROCS(0) + n.Reserved
	for _, a := range n.Addresses {
		all += listenerDescriptors * bind.Sockets(a)
	}
	if slices.ContainsFunc(n.Upstreams, func(u upstream.Config) bool { return u.Dynamic }) {
		all += lookupDescriptors * Lookups(limit)
	}
	for _, u := range n.Upstreams {
		for _, e := range u.Endpoints {
			if e.IsLiteral() {
				all += literalDescriptors
			} else {
				all += nameDescriptors
			}
		}
	}
	return all
}

// Affordable is how many sessions can have both their descriptors within the limit.
func (n *Needs) Affordable(limit int) int { return max((limit-n.besides(limit))/2, 1) }

// Sessions is how many sessions to allow if the configuration does not say: 45 % of the
// limit, but not more than Affordable.
func (n *Needs) Sessions(limit int) int {
	return min(int(int64(limit)*45/100), n.Affordable(limit))
}
