package l4

import "ambassador/l4/descriptors"

// needs is what decides how many descriptors the configuration needs.
func (c *Config) needs() *descriptors.Needs {
	n := &descriptors.Needs{Reserved: c.ReservedDescriptors, Upstreams: c.Upstreams}
	for _, l := range c.Listeners {
		n.Addresses = append(n.Addresses, l.Addresses...)
	}
	return n
}

// maxSessions is MaxSessions, or its default.
func (c *Config) maxSessions(limit int) int {
	if c.MaxSessions != 0 {
		return c.MaxSessions
	}
	return c.needs().Sessions(limit)
}

// warnOfDescriptors warns if MaxSessions needs more descriptors than the process has.
func (s *Server) warnOfDescriptors(cfg *Config) {
	limit := descriptors.Limit()
	if most := cfg.needs().Affordable(limit); cfg.MaxSessions > most {
		s.log.Warn("limits.connections is more than the descriptors allow: sessions may end with local_exhausted",
			"limits.connections", cfg.MaxSessions, "descriptors", limit, "affordable", most,
			"hint", "raise the descriptor limit (ulimit -n, LimitNOFILE=), or lower limits.connections")
	}
}
