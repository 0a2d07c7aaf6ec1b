package admin

import (
	"log/slog"
	"time"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/logs"
	"ambassador/l4"
	"ambassador/l4/outcome"
)

func (a *Deps) listenerReplies(traffic []l4.Traffic) []api.Listener {
	out := []api.Listener{}
	open, failures := map[string]int{}, a.failuresSince(time.Now().Add(-time.Minute))
	for _, t := range traffic {
		open[t.Listener] += t.Active
	}
	for _, b := range a.Listeners() {
		l := api.Listener{ListenerStatus: b, Sessions: open[b.Name], Failures: failures[b.Name]}
		if a.Rules != nil {
			l.Upstream, l.Rules = a.Rules(b.Name)
		}
		out = append(out, l)
	}
	return out
}

// failuresSince counts the sessions of each listener that have failed since a time.
func (a *Deps) failuresSince(at time.Time) map[string]int {
	out := map[string]int{}
	all := a.endedSince(at)
	for i := range all {
		if logs.Level(&all[i]) > slog.LevelInfo {
			out[all[i].Listener]++
		}
	}
	return out
}

// endedSince returns the sessions that have ended since a time, as far as they are kept.
// It copies few more than these: a record has 600 bytes.
func (a *Deps) endedSince(at time.Time) []outcome.Record {
	for n := 64; ; n *= 4 {
		all := a.Recent(n)
		for i := range all { // the newest is first
			if all[i].Start.Add(time.Duration(all[i].Duration)).Before(at) {
				return all[:i]
			}
		}
		if len(all) < n {
			return all
		}
	}
}

func (a *Deps) identityReplies() []api.Identity {
	out := []api.Identity{}
	if a.Identities == nil {
		return out
	}
	for _, s := range a.Identities() {
		out = append(out, newIdentityReply(s))
	}
	return out
}

func newIdentityReply(s certs.Status) api.Identity {
	r := api.Identity{Name: s.Name, Ready: s.Ready, Subject: s.Subject, Names: orEmpty(s.Names), Serial: s.Serial, Issuer: s.Issuer, Generation: s.Generation,
		NotBefore: unlessZero(s.NotBefore), NotAfter: unlessZero(s.NotAfter), NextRenewal: unlessZero(s.NextRenewal), LastErrorAt: unlessZero(s.LastErrorAt),
		Loads: int64(s.Loads), Failures: int64(s.Failures), Warnings: s.Warnings}
	if r.LastError = s.LastError; r.LastError == "" {
		r.LastError = s.Reason
	}
	return r
}

func unlessZero(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
