package upstream

import (
	"context"
	"fmt"
	"math"
	"net"
	"time"

	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/l4/task"
)

// raceDelay is how long a dial may take before a dial to the other address family
// starts in parallel. RFC 8305 calls it the Connection Attempt Delay.
const raceDelay = 250 * time.Millisecond

// dialTo connects to conn.candidate, or to its sibling of the other address family if
// that is faster. It sets conn.candidate to the one that connected.
func (u *Upstream) dialTo(ctx context.Context, plan *plan, conn *Conn) error {
	start := time.Now()
	if !plan.hasSibling(conn.candidate) {
		raw, err := u.dialOne(ctx, conn.candidate)
		if err == nil {
			conn.raw = raw
			conn.timed(PhaseDial, start)
		}
		return err
	}
	task.Leave(ctx)
	r := race{upstream: u, results: make(chan dialed, 2)}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the slower dial
	r.begin(ctx, conn.candidate)
	delay := time.NewTimer(raceDelay)
	defer delay.Stop()
	for {
		select {
		case <-delay.C:
			if c, ok := plan.sibling(conn.candidate); ok {
				r.begin(ctx, c)
			}
		case d := <-r.results:
			r.running--
			if d.err != nil && r.running > 0 {
				e := u.failed(ctx, outcome.StageDial, d.candidate, d.err)
				plan.failed(d.candidate, e)
				if plan.clientGaveUp() {
					e = nil
				}
				u.giveUp(d.candidate, e)
				continue // the other dial is still running
			}
			conn.candidate, conn.raw = d.candidate, d.conn
			if d.err != nil {
				return d.err
			}
			r.discard()
			conn.timed(PhaseDial, start)
			return nil
		}
	}
}

// race is one or two dials at once.
type race struct {
	upstream *Upstream
	results  chan dialed
	running  int
}

type dialed struct {
	candidate candidate
	conn      net.Conn
	err       error
}

// begin starts a dial. Results has room for all, so the dial's goroutine always ends.
func (r *race) begin(ctx context.Context, c candidate) {
	r.running++
	go func() { // dialTo or discard receives the result
		d := dialed{candidate: c}
		if err := r.upstream.guard.Catch(PartUpstream, func() { d.conn, d.err = r.upstream.dialOne(ctx, c) }); err != nil {
			d.err = err
		}
		r.results <- d
	}()
}

// discard closes the connection that the slower dial may still make. That it was slower
// says nothing about its address.
func (r *race) discard() {
	if r.running == 0 {
		return
	}
	go func() { // ends with the cancelled dial
		d := <-r.results
		if d.conn != nil {
			d.conn.Close()
		}
		r.upstream.giveUp(d.candidate, nil)
	}()
}

func (u *Upstream) dialOne(ctx context.Context, c candidate) (net.Conn, error) {
	if c.at.unix != "" {
		return u.dial(ctx, "unix", c.at.unix)
	}
	return u.dial(ctx, "tcp", c.at.name)
}

// dialFor returns the DialFunc of an upstream. The error means that the process cannot
// set the upstream's mark.
func (o *Deps) dialFor(cfg *Config) (netconn.DialFunc, error) {
	if cfg.Mark == 0 || o.Marked == nil {
		return o.Dial, nil
	}
	if cfg.Mark < 0 || uint64(cfg.Mark) > math.MaxUint32 {
		return nil, fmt.Errorf("mark: %d is not between 0 and %d", cfg.Mark, uint32(math.MaxUint32))
	}
	if err := relay.MayMark(cfg.Mark); err != nil {
		return nil, err
	}
	return o.Marked(cfg.Mark), nil
}
