package policy

import "sync"

// Method is how a Balancer chooses.
type Method uint8

// The methods, all by weight.
const (
	// RoundRobin takes turns, spread evenly.
	RoundRobin Method = iota
	// RandomTwo draws two and takes the one with fewer sessions for its weight.
	RandomTwo
	// LeastConnections takes the one with the fewest sessions for its weight; those
	// with equally few take turns.
	LeastConnections
)

// Share is a candidate's place in a Balancer. The zero value begins.
type Share struct {
	current int // guarded by the Balancer's mu
}

// Candidate is one of the addresses to choose from.
type Candidate struct {
	Share *Share
	// Weight is its share of the traffic; below one is one.
	Weight int
	// Rank is its group: those of a higher rank are chosen only when none of a
	// lower one is usable.
	Rank int
	// Live is how many sessions it has.
	Live int
	// Usable says whether it may be chosen at all.
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

// in says whether the candidate may be chosen from that rank.
func (c *Candidate) in(rank int) bool { return c.Usable && c.Rank == rank }

// busier says whether c has more sessions for its weight than o.
func (c *Candidate) busier(o *Candidate) bool { return c.Live*o.weight() > o.Live*c.weight() }

// turn is smooth weighted round robin (nginx's): each turn everybody gains its
// weight, and the one with most is chosen and pays what all have gained. Like, if
// not -1, restricts it to those that are as busy as that one.
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

// twoChoices draws two different candidates by weight and takes the less busy.
func twoChoices(all []Candidate, rank, total int, a, b float64) int {
	first := draw(all, rank, -1, int(a*float64(total)))
	second := draw(all, rank, first, int(b*float64(total-all[first].weight())))
	if all[first].busier(&all[second]) {
		return second
	}
	return first
}

// draw is the candidate in whose stretch of the summed weights at falls.
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
