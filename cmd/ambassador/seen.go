package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

// seen counts the destinations that `socks5 --report` allowed and that no --allow
// lists.
type seen struct {
	mu       sync.Mutex
	asked    map[destination]*tally // guarded by mu
	listed   int                    // guarded by mu; sessions to destinations listed in --allow
	overflow int                    // guarded by mu; sessions to destinations beyond maxSeen
}

// destination is the destination of a client's request.
type destination struct {
	host string // a name or an address
	port uint16
}

// tally counts the sessions to a destination, and the failed ones by reason.
type tally struct {
	sessions int
	failed   map[outcome.Reason]int
}

// maxSeen bounds the destinations that are kept, which then take about 2 MB.
const maxSeen = 10000

func newSeen() *seen { return &seen{asked: map[destination]*tally{}} }

// ended counts a session.
func (s *seen) ended(r *outcome.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Rule != unlisted {
		if r.Rule != "" {
			s.listed++
		}
		return
	}
	host, port, err := net.SplitHostPort(r.Destination)
	n, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || portErr != nil {
		return // not a destination that a client can ask for
	}
	to := destination{host, uint16(n)}
	t := s.asked[to]
	if t == nil {
		if len(s.asked) >= maxSeen {
			s.overflow++
			return
		}
		t = &tally{failed: map[outcome.Reason]int{}}
		s.asked[to] = t
	}
	t.sessions++
	if r.Establish == 0 && r.Reason != outcome.Probe && r.Reason != outcome.Closed {
		t.failed[r.Reason]++
	}
}

// need is a host and a range of consecutive ports that a client used.
type need struct {
	host        string
	first, last uint16
	tally
}

// needs merges the destinations by host and port.
func (s *seen) needs() (out []need) {
	s.mu.Lock()
	defer s.mu.Unlock()
	order := slices.SortedFunc(maps.Keys(s.asked), func(a, b destination) int {
		return cmp.Or(strings.Compare(a.host, b.host), cmp.Compare(a.port, b.port))
	})
	for _, to := range order {
		t := s.asked[to]
		if n := len(out) - 1; n >= 0 && out[n].host == to.host && out[n].last+1 == to.port {
			out[n].last = to.port
			out[n].add(t)
			continue
		}
		n := need{host: to.host, first: to.port, last: to.port, tally: tally{failed: map[outcome.Reason]int{}}}
		n.add(t)
		out = append(out, n)
	}
	return out
}

func (t *tally) add(more *tally) {
	t.sessions += more.sessions
	for reason, n := range more.failed {
		t.failed[reason] += n
	}
}

// String describes the tally: "12 sessions, 3 of them refused".
func (t *tally) String() string {
	text := output.Plural(t.sessions, "session")
	for _, reason := range slices.Sorted(maps.Keys(t.failed)) {
		text += fmt.Sprintf(", %d %s", t.failed[reason], reason)
	}
	return text
}

// allow is the need as a value of --allow.
func (n need) allow() string {
	host := n.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + policy.PortRange{First: n.first, Last: n.last}.String()
}

// write prints the destinations that --allow lacks, as flags and as rules.
func (s *seen) write(w io.Writer) error {
	needs := s.needs()
	p := &output.Report{}
	s.mu.Lock()
	listed, overflow := s.listed, s.overflow
	s.mu.Unlock()
	if len(needs) == 0 {
		p.Linef("# nothing was asked for that --allow does not have (%s)", output.Plural(listed, "session"))
		_, err := io.WriteString(w, p.String())
		return err
	}
	p.Linef("# not in --allow, and allowed by --report:")
	for _, n := range needs {
		p.Linef("--allow '%s'  # %s", n.allow(), n.tally.String())
	}
	p.Linef("# the same as rules of a configuration file:")
	for _, n := range needs {
		if rule, err := parseAllow(n.allow()); err == nil {
			p.Linef("- %s", rule.yaml())
		}
	}
	if overflow > 0 {
		p.Linef("# and %s to more than %d destinations, which were not kept", output.Plural(overflow, "session"), maxSeen)
	}
	_, err := io.WriteString(w, p.String())
	return err
}
