package process

import (
	"log/slog"

	"ambassador/cmd/ambassador/internal/logs"
	"ambassador/cmd/ambassador/internal/page"
	"ambassador/l4/outcome"
)

// pageSource is what the live page shows.
func (p *Process) pageSource() page.Source {
	d := p.adminDeps()
	return page.Source{Status: d.Status, Sessions: d.Sessions, Recent: d.Recent, Counts: p.counts, Rules: p.ruleHits, Log: p.log.Tail, Failed: failed}
}

// failed reports whether the log has the session above the level of normal ends.
func failed(r *outcome.Record) bool { return logs.Level(r) > slog.LevelInfo }

// counts reads what others count anyway. The reason alone tells failures apart.
func (p *Process) counts() page.Counts {
	var c page.Counts
	c.Upstreams = map[string][]string{}
	for _, t := range p.server.Traffic() { // sorted
		c.Up += t.Up
		c.Down += t.Down
		if t.Upstream != "" {
			c.Upstreams[t.Listener] = append(c.Upstreams[t.Listener], t.Upstream)
		}
	}
	c.Ended, c.Failed = p.metrics.Ended(func(reason outcome.Reason) bool { return failed(&outcome.Record{Reason: reason}) })
	return c
}

// ruleHits lists the rules in the order of their series.
func (p *Process) ruleHits() (out []page.Rule) {
	for _, r := range p.metrics.RuleHits() {
		out = append(out, page.Rule{Listener: r.Listener, Name: r.Rule.Rule, Verdict: string(r.Verdict), Hits: r.Hits})
	}
	return out
}
