package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ambassador/certs"
	"ambassador/certs/embedded"
	"ambassador/certs/files"
)

// pairs issues identities into files of a folder.
type pairs struct {
	t      *testing.T
	ca     *embedded.CA
	folder string
}

func newPairs(t *testing.T) *pairs {
	t.Helper()
	ca, err := embedded.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ca.Close)
	return &pairs{t, ca, t.TempDir()}
}

// issue writes a new pair under a name; the old one of that name is replaced.
func (p *pairs) issue(name string) files.Files {
	p.t.Helper()
	cert, key, err := p.ca.IssuePEM([]string{name}, time.Hour)
	if err != nil {
		p.t.Fatal(err)
	}
	f := files.Files{Cert: filepath.Join(p.folder, name+".crt"), Key: filepath.Join(p.folder, name+".key")}
	writeFile(p.t, f.Key, string(key))
	writeFile(p.t, f.Cert, string(cert))
	return f
}

func managed(t *testing.T) *identities {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	m := newIdentities(ctx, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { cancel(); m.all.Wait() })
	return m
}

// take makes want the identities in use.
func (m *identities) take(t *testing.T, want map[string]files.Files) identitySet {
	t.Helper()
	set, failed := m.prepare(want)
	if len(failed) > 0 {
		t.Fatal(failed)
	}
	m.commit(set)
	return set
}

func TestUnchangedIdentitiesSurviveAReload(t *testing.T) {
	p, m := newPairs(t), managed(t)
	a, b, c := p.issue("a"), p.issue("b"), p.issue("c")
	first := m.take(t, map[string]files.Files{"same": a, "other": b, "gone": c})
	second := m.take(t, map[string]files.Files{"same": a, "other": c, "new": b})
	if first["same"] != second["same"] {
		t.Error("an unchanged identity was replaced")
	}
	if first["other"] == second["other"] {
		t.Error("an identity with other files was kept")
	}
	var names []string
	for _, s := range m.statuses() {
		names = append(names, s.Name)
		if !s.Ready {
			t.Errorf("%s is not ready: %s", s.Name, s.Reason)
		}
	}
	if got := strings.Join(names, " "); got != "new other same" {
		t.Errorf("the identities are %q", got)
	}
	if second.source("same") == nil || second.source("gone") != nil {
		t.Error("the sources are not those of the configuration")
	}
}

func TestAFailedPrepareChangesNothing(t *testing.T) {
	p, m := newPairs(t), managed(t)
	first := m.take(t, map[string]files.Files{"a": p.issue("a")})
	absent := files.Files{Cert: filepath.Join(p.folder, "absent"), Key: filepath.Join(p.folder, "absent")}
	_, failed := m.prepare(map[string]files.Files{"a": first["a"].files, "b": absent, "c": absent})
	if len(failed) != 2 || failed["b"] == nil || failed["c"] == nil {
		t.Errorf("failed are %v, want b and c", failed)
	}
	if got := m.statuses(); len(got) != 1 || got[0].Name != "a" {
		t.Errorf("in use are %v", got)
	}
}

// awaitSerial waits until the source has another certificate.
func awaitSerial(t *testing.T, s *certs.Source, old string) {
	t.Helper()
	end := time.After(patience)
	for {
		changed := s.Changed()
		if s.Status().Serial != old {
			return
		}
		select {
		case <-changed:
		case <-end:
			t.Fatal("the new certificate was not taken up")
		}
	}
}

func TestARenewedPairIsTakenUp(t *testing.T) {
	p, m := newPairs(t), managed(t)
	set := m.take(t, map[string]files.Files{"a": p.issue("a")})
	old := set.source("a").Status().Serial
	p.issue("a")
	awaitSerial(t, set.source("a"), old)
	old = set.source("a").Status().Serial
	m.refresh()
	p.issue("a")
	m.refresh() // the watcher lives on
	awaitSerial(t, set.source("a"), old)
}
