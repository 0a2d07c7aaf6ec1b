package page

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/outcome"
)

// answer is the answer to one of the questions that operators ask first.
type answer struct {
	Question string
	State    string // ok, warn, bad or none
	Text     string
	More     []string
	Link     string // the id of the part that has more
}

// answers answers the seven questions.
func (p *Page) answers(s *snapshot) []answer {
	return []answer{ready(s), p.lastFailure(s), certificate(s), denied(s), wouldDeny(s), reload(s), slowest(s)}
}

// ready says whether traffic may come. It is also a warning that an address fails.
func ready(s *snapshot) answer {
	a := answer{Question: "Ready?", State: "ok", Text: "ready", Link: "upstreams"}
	r := s.status.Readiness
	for _, row := range s.addresses {
		if row.State == "bad" {
			a.State, a.Text = "warn", "ready, with trouble"
			a.More = append(a.More, strings.TrimSpace(row.Upstream+" "+cmp.Or(row.Address, row.Endpoint))+": "+cmp.Or(row.Error, row.Health))
		}
	}
	if len(r.Warnings) > 0 {
		a.State, a.More = "warn", append(a.More, r.Warnings...)
	}
	switch {
	case r.Draining:
		a.State, a.Text, a.More = "bad", "draining, not ready", r.Waiting
	case !r.Ready:
		a.State, a.Text, a.More = "bad", "not ready", r.Waiting
	}
	return a
}

func ago(r *outcome.Record, now time.Time) string {
	return output.Age(now.Sub(r.Start.Add(time.Duration(r.Duration)))) + " ago"
}

func (p *Page) lastFailure(s *snapshot) answer {
	a := answer{Question: "Why did my connection end?", State: "ok", Text: "no failure among the last " + output.Plural(len(s.ended), "session"), Link: "ended"}
	if len(s.ended) == 0 {
		a.State, a.Text = "none", "no session has ended yet"
	}
	for i := range s.ended {
		if r := &s.ended[i]; p.source.Failed(r) {
			row := p.row(r, s.made)
			a.State, a.Text = "warn", fmt.Sprintf("%s, %s", r.Reason, ago(r, s.made))
			a.More = []string{joined(r.Client, row.Who, "to", cmp.Or(row.To, "nothing")) + ": " + cmp.Or(r.Cause, row.Why)}
			break
		}
	}
	return a
}

func certificate(s *snapshot) answer {
	a := answer{Question: "When does a certificate expire?", State: "none", Text: "no identity is configured", Link: "identities"}
	var first time.Time
	for _, row := range s.identities {
		if row.State == "bad" {
			return answer{a.Question, "bad", row.Name + ": not ready", []string{row.Problem}, a.Link}
		}
		if row.NotAfter != nil && (first.IsZero() || row.NotAfter.Before(first)) {
			first = *row.NotAfter
			a.State, a.Text = row.State, row.Name+": "+row.Expires
			a.More = nil
			if row.Renewal != "" {
				a.More = []string{"next renewal " + row.Renewal}
			}
		}
	}
	return a
}

// isDenial reports whether the configuration refused the client.
func isDenial(r outcome.Reason) bool {
	return r == outcome.Denied || r == outcome.NoRoute || r == outcome.AuthFailed || r == outcome.SpecialAddress
}

func denied(s *snapshot) answer {
	a := answer{Question: "Which application was denied?", State: "ok", Text: "none of the last " + output.Plural(len(s.ended), "session"), Link: "ended"}
	n := 0
	var last *outcome.Record
	for i := range s.ended {
		if r := &s.ended[i]; isDenial(r.Reason) {
			n++
			last = cmp.Or(last, r)
		}
	}
	if n == 0 {
		return a
	}
	a.State, a.Text = "warn", fmt.Sprintf("%s, %s; %d of the last %s", joined(last.User, last.Principal, cmp.Or(last.ClientProcess(), last.Client)), ago(last, s.made), n, output.Plural(len(s.ended), "session"))
	a.More = []string{joined(string(last.Reason), last.Destination) + ": " + last.Cause}
	return a
}

func wouldDeny(s *snapshot) answer {
	a := answer{Question: "What would be denied?", State: "none", Text: "nothing: no rule has verdict report", Link: "rules"}
	var most Rule
	total := int64(0)
	for _, r := range s.rules {
		if r.Verdict == "would_deny" {
			a.State, a.Text = "ok", "nothing so far"
			total += r.Hits
			if r.Hits > most.Hits {
				most = r
			}
		}
	}
	if total > 0 {
		a.State, a.Text = "warn", output.Plural(int(total), "session")+" since the start"
		a.More = []string{fmt.Sprintf("most by %s: %d", joined("listener", most.Listener, cmp.Or(most.Name, "no rule matched")), most.Hits)}
	}
	return a
}

func reload(s *snapshot) answer {
	a := answer{Question: "Did the last reload work?", State: "none", Text: "there was none", More: []string{"started " + output.Age(s.made.Sub(s.status.Started)) + " ago"}, Link: "log"}
	if r := s.status.LastReload; r != nil {
		a.State, a.Text, a.More = "ok", "yes, "+output.Age(s.made.Sub(r.At))+" ago", nil
		if r.Error != "" {
			a.State, a.Text = "bad", "no, "+output.Age(s.made.Sub(r.At))+" ago; the old configuration is in use"
			a.More = []string{r.Error}
		}
	}
	return a
}

// place is an upstream, and an address of it; without one it stands for all of them.
type place struct{ upstream, address string }

// connectTimes are how long the sessions that ended or are open took to connect, sorted.
func connectTimes(s *snapshot) map[place][]outcome.Seconds {
	times := map[place][]outcome.Seconds{}
	for _, all := range [][]outcome.Record{s.open, s.ended} {
		for i := range all {
			if r := &all[i]; r.Establish > 0 {
				for _, p := range []place{{r.Upstream, ""}, {r.Upstream, r.Address}} {
					times[p] = append(times[p], r.Establish)
				}
			}
		}
	}
	for _, all := range times {
		slices.Sort(all)
	}
	return times
}

// medianOf is the median of sorted times in words; empty if there is none.
func medianOf(times []outcome.Seconds) string {
	if len(times) == 0 {
		return ""
	}
	return times[len(times)/2].String()
}

// slowest names the upstream with the longest median time to connect, and its slowest
// session.
func slowest(s *snapshot) answer {
	a := answer{Question: "What is slow?", State: "none", Text: "no session has connected yet", Link: "upstreams"}
	times := connectTimes(s)
	var most place
	var longest outcome.Seconds
	for p, all := range times {
		if median := all[len(all)/2]; p.address == "" && (median > longest || median == longest && p.upstream < most.upstream) {
			most, longest = p, median
		}
	}
	all := times[most]
	if len(all) == 0 {
		return a
	}
	a.State, a.Text = "ok", fmt.Sprintf("%s: %s to connect", most.upstream, longest)
	if time.Duration(longest) > time.Second {
		a.State = "warn"
	}
	last := all[len(all)-1]
	a.More = []string{fmt.Sprintf("median of %s; the slowest, %s, took %s", output.Plural(len(all), "session"), s.connectedIn(most.upstream, last), last)}
	return a
}

// connectedIn names a session of the upstream that took so long to connect.
func (s *snapshot) connectedIn(upstream string, took outcome.Seconds) string {
	for _, all := range [][]outcome.Record{s.open, s.ended} {
		for i := range all {
			if r := &all[i]; r.Upstream == upstream && r.Establish == took {
				return joined(r.ID, "to", cmp.Or(r.Address, r.Destination, r.Upstream))
			}
		}
	}
	return "unknown"
}
