package admin

import (
	"time"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/api"
)

func (a *admin) listenerReplies() []api.Listener {
	out := []api.Listener{}
	for _, b := range a.Listeners() {
		l := api.Listener{ListenerStatus: b}
		if a.Rules != nil {
			l.Rules = a.Rules(b.Name)
		}
		out = append(out, l)
	}
	return out
}

func (a *admin) identityReplies() []api.Identity {
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
		Loads: int64(s.Loads), Failures: int64(s.Failures)}
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
