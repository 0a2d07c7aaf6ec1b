package policy

import "sync"

// Method is a way to choose an address.
type Method uint8

// The methods. All respect weights.
const (
	// RoundRobin chooses in turn, spread evenly.
	RoundRobin Method = iota
	// RandomTwo draws two and chooses the one with fewer sessions for its weight.
	RandomTwo
	// LeastConnections chooses the one with the fewest sessions for its weight, and
	// among equals in turn.
	LeastConnections
)

// Share is a candidate's state in a Balancer. The zero value is ready to use.
type Share struct {
	current int // guarded by the Balancer's mu
}

// Candidate is one of the addresses to choose from.
type Candidate struct {
	Share *Share
	// Weight is its share of the traffic; less than one counts as one.
	Weight int
	// Rank is its group: a candidate of a higher rank is chosen only if none of a
	// lower rank is usable.
	Rank int
	// Live is its number of sessions.
	Live int
	// Usable says whether it may be chosen.
	Usable bool
}

// Balancer chooses among addresses. It is safe for concurrent use and allocates
// nothing.
type Balancer struct {
	Method Method // static after construction

	mu sync.Mutex
}

// Pick chooses one of the candidates and returns its index, or -1 if none is
// usable. A and b are random numbers in [0, 1).
func (p *Balancer) Pick(all []Candidate, a, b float64) int {
	rank, total, usable, last := 0, 0, 0, -1
	for i := range all {
		c := &all[i]
		if !c.Usable || usable > 0 && c.Rank > rank {
			continue
		}
		if usable == 0 || c.Rank < rank {
			rank, total, usable = c.Rank, 0, 0
		}
		total += c.weight()
		usable++
		last = i
	}
	if usable <= 1 {
		return last
	}
	switch p.Method {
	case RandomTwo:
		return twoChoices(all, rank, total, a, b)
	case LeastConnections:
		return p.turn(all, rank, leastLoaded(all, rank))
	}
	return p.turn(all, rank, -1)
}

func (c *Candidate) weight() int { return max(c.Weight, 1) }

// in reports whether the candidate is usable and of that rank.
func (c *Candidate) in(rank int) bool { return c.Usable && c.Rank == rank }

// busier reports whether c has more sessions for its weight than o.
func (c *Candidate) busier(o *Candidate) bool { return c.Live*o.weight() > o.Live*c.weight() }

// turn is nginx's smooth weighted round robin: each turn every candidate gains
// its weight, and the one with the most is chosen and pays the sum of the
// weights. If like is not -1, only candidates as busy as that one take part.
func (p *Balancer) turn(all []Candidate, rank, like int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	best, total := -1, 0
	for i := range all {
		c := &all[i]
		if !c.in(rank) || like >= 0 && c.busier(&all[like]) {
			continue
		}
		c.Share.current += c.weight()
		total += c.weight()
		if best < 0 || c.Share.current > all[best].Share.current {
			best = i
		}
	}
	all[best].Share.current -= total
	return best
}

func leastLoaded(all []Candidate, rank int) int {
	best := -1
	for i := range all {
		if all[i].in(rank) && (best < 0 || all[best].busier(&all[i])) {
			best = i
		}
	}
	return best
}

// twoChoices draws two different candidates by weight and returns the less busy
// one.
func twoChoices(all []Candidate, rank, total int, a, b float64) int {
	first := draw(all, rank, -1, int(a*float64(total)))
	second := draw(all, rank, first, int(b*float64(total-all[first].weight())))
	if all[first].busier(&all[second]) {
		return second
	}
	return first
}

// draw returns the candidate at a position of the summed weights. It skips but.
func draw(all []Candidate, rank, but, at int) int {
	last := -1
	for i := range all {
		if !all[i].in(rank) || i == but {
			continue
		}
		last = i
		if at -= all[i].weight(); at < 0 {
			break
		}
	}
	return last
}
