package l4

import (
	"math"
	"runtime"
	"slices"
	"syscall"
)

// DescriptorLimit is how many descriptors the process may have open. Go raises the soft
// limit to the hard limit at the start. math.MaxInt32 stands for no limit.
func DescriptorLimit() int {
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

// maxLookups is how many lookups of names that clients ask for may be in flight.
func maxLookups(limit int) int { return min(max(limit/64, 4), 256) }

// reserved is how many descriptors sessions must leave free for the rest of the
// process, so that each session can open its own. It does not count the second dial of
// a session that races two address families: that dial is short.
func (c *Config) reserved(limit int) int {
	n := ownDescriptors + loopDescriptors*runtime.GOMAXPROCS(0) + listenerDescriptors*len(c.Listeners) + c.ReservedDescriptors
	if slices.ContainsFunc(c.Upstreams, func(u UpstreamConfig) bool { return u.Dynamic }) {
		n += lookupDescriptors * maxLookups(limit)
	}
	for _, u := range c.Upstreams {
		for _, e := range u.Endpoints {
			if _, _, literal := parseLiteral(e.Address); literal {
				n += literalDescriptors
			} else {
				n += nameDescriptors
			}
		}
	}
	return n
}

// affordable is how many sessions can have both their descriptors within the limit.
func (c *Config) affordable(limit int) int { return max((limit-c.reserved(limit))/2, 1) }

// maxSessions is MaxSessions, or its default: 45 % of the descriptor limit, but not
// more than affordable.
func (c *Config) maxSessions(limit int) int {
	if c.MaxSessions != 0 {
		return c.MaxSessions
	}
	return min(int(int64(limit)*45/100), c.affordable(limit))
}

// warnOfDescriptors warns if MaxSessions needs more descriptors than the process has.
func (s *Server) warnOfDescriptors(cfg *Config) {
	limit := DescriptorLimit()
	if most := cfg.affordable(limit); cfg.MaxSessions > most {
		s.log.Warn("limits.connections is more than the descriptors allow: sessions may end with local_exhausted",
			"limits.connections", cfg.MaxSessions, "descriptors", limit, "affordable", most,
			"hint", "raise the descriptor limit (ulimit -n, LimitNOFILE=), or lower limits.connections")
	}
}
