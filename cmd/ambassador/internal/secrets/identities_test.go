package secrets

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ambassador/certs"
	"ambassador/certs/files"
	"ambassador/certs/step"
	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/config"
)

func managed(t *testing.T) *Store {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	m := NewStore(ctx, slog.New(slog.DiscardHandler), nil, nil)
	t.Cleanup(func() { cancel(); m.Wait() })
	return m
}

// sections are identities from files.
func sections(want map[string]files.Files) (out []*config.IdentitySection) {
	for name, f := range want {
		out = append(out, &config.IdentitySection{Name: name, Files: f})
	}
	return out
}

// take makes want the identities in use.
func take(t *testing.T, m *Store, want map[string]files.Files) *Prepared {
	t.Helper()
	p, err := m.Prepare(&config.File{Identities: sections(want)})
	if err != nil {
		t.Fatal(err)
	}
	m.Commit(p)
	return p
}

func TestUnchangedIdentitiesSurviveAReload(t *testing.T) {
	p, m := cmdtest.NewPairs(t), managed(t)
	a, b, c := p.Issue("a"), p.Issue("b"), p.Issue("c")
	first := take(t, m, map[string]files.Files{"same": a, "other": b, "gone": c})
	second := take(t, m, map[string]files.Files{"same": a, "other": c, "new": b})
	if first.ids["same"] != second.ids["same"] {
		t.Error("an unchanged identity was replaced")
	}
	if first.ids["other"] == second.ids["other"] {
		t.Error("an identity with other files was kept")
	}
	var names []string
	for _, s := range m.Identities() {
		names = append(names, s.Name)
		if !s.Ready {
			t.Errorf("%s is not ready: %s", s.Name, s.Reason)
		}
	}
	if got := strings.Join(names, " "); got != "new other same" {
		t.Errorf("the identities are %q", got)
	}
	if second.Identity("same") == nil || second.Identity("gone") != nil {
		t.Error("the sources are not those of the configuration")
	}
}

func TestAFailedPrepareChangesNothing(t *testing.T) {
	p, m := cmdtest.NewPairs(t), managed(t)
	a := p.Issue("a")
	take(t, m, map[string]files.Files{"a": a})
	absent := files.Files{Cert: filepath.Join(p.Folder, "absent"), Key: filepath.Join(p.Folder, "absent")}
	_, failed := m.ids.prepare(m.identities(sections(map[string]files.Files{"a": a, "b": absent, "c": absent})))
	if len(failed) != 2 || failed["b"] == nil || failed["c"] == nil {
		t.Errorf("failed are %v, want b and c", failed)
	}
	if got := m.Identities(); len(got) != 1 || got[0].Name != "a" {
		t.Errorf("in use are %v", got)
	}
}

// awaitSerial waits until the source has another certificate.
func awaitSerial(t *testing.T, s *certs.Source, old string) {
	t.Helper()
	end := time.After(cmdtest.Patience)
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
	p, m := cmdtest.NewPairs(t), managed(t)
	set := take(t, m, map[string]files.Files{"a": p.Issue("a")})
	old := set.Identity("a").Status().Serial
	p.Issue("a")
	awaitSerial(t, set.Identity("a"), old)
	old = set.Identity("a").Status().Serial
	m.Refresh()
	p.Issue("a")
	m.Refresh() // the watcher lives on
	awaitSerial(t, set.Identity("a"), old)
}

// What `check` can see of a step identity it sees, and it contacts nobody: there
// is no CA at that port.
func TestCheckOfStepIdentities(t *testing.T) {
	folder := t.TempDir()
	in := func(name string) string { return filepath.Join(folder, name) }
	cmdtest.WriteFile(t, in("pw"), "secret\n")
	cmdtest.WriteFile(t, in("empty"), "\n")
	for name, mode := range map[string]fs.FileMode{"ours": 0o755, "everybodys": 0o777} {
		if err := errors.Join(os.Mkdir(in(name), 0o700), os.Chmod(in(name), mode)); err != nil {
			t.Fatal(err)
		}
	}
	cmdtest.WriteFile(t, filepath.Join(in("ours"), "identity.pem"), "half of a pair")
	for _, tt := range []struct{ keys, want string }{
		{"provisioner: p, password_file: " + in("pw") + ", storage: " + in("none"), ""},
		{"provisioner: p, password_file: " + in("pw") + ", storage: " + in("everybodys"), "identities.me.step.storage: use " + in("everybodys") + ": others may write it (mode 0777); chmod go-w it"},
		{"token_file: " + in("absent") + ", storage: " + in("everybodys"), "identities.me.step.storage: use " + in("everybodys")},
		{"provisioner: p, password_file: " + in("pw") + ", storage: " + in("ours"), "identities.me.step.storage: " + filepath.Join(in("ours"), "identity.pem")},
		{"provisioner: p, password_file: " + in("pw"), ""},
		{"provisioner: p, password_file: " + in("absent"), "identities.me.step.password_file: " + in("absent")},
		{"provisioner: p, password_file: " + in("empty"), "it is empty; write the password"},
		{"storage: s, token_file: " + in("pw"), ""},
		{"storage: s, token_file: " + in("absent"), "identities.me.step.token_file: open " + in("absent") + ": no such file or directory; storage has no certificate yet"},
	} {
		f := parsed(t, cmdtest.Good+"identities: {me: {step: {url: 'https://127.0.0.1:1', fingerprint: "+strings.Repeat("0", 64)+", names: [a], "+tt.keys+"}}}")
		var got []string
		for _, p := range Check(f) {
			got = append(got, p.String())
		}
		if text := strings.Join(got, "\n"); (text == "") != (tt.want == "") || !strings.Contains(text, tt.want) {
			t.Errorf("%s: %q; want %q", tt.keys, text, tt.want)
		}
	}
}

// A CA that is not there holds up neither start nor reload, and another
// configuration of it is another identity.
func TestIdentitiesFromACAThatIsAway(t *testing.T) {
	m, folder := managed(t), t.TempDir()
	cmdtest.WriteFile(t, filepath.Join(folder, "pw"), "secret\n")
	section := func(names ...string) []*config.IdentitySection {
		return []*config.IdentitySection{{Name: "me", Step: &step.Config{URL: "https://127.0.0.1:1", Fingerprint: strings.Repeat("0", 64), Provisioner: "p",
			PasswordFile: filepath.Join(folder, "pw"), Names: names, Storage: filepath.Join(folder, "me")}}}
	}
	var sets []*Prepared
	for _, names := range [][]string{{"a"}, {"a"}, {"b"}} {
		p, err := m.Prepare(&config.File{Identities: section(names...)})
		if err != nil {
			t.Fatal(err)
		}
		m.Commit(p)
		sets = append(sets, p)
	}
	if sets[0].ids["me"] != sets[1].ids["me"] || sets[1].ids["me"] == sets[2].ids["me"] {
		t.Error("an unchanged identity was replaced, or another one kept")
	}
	ctx, cancel := context.WithTimeout(t.Context(), cmdtest.Patience)
	defer cancel()
	if err := sets[2].Identity("me").Await(ctx); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("await: %v", err)
	}
	bad := section("a")
	bad[0].Step.PasswordFile += ".absent"
	f := parsed(t, cmdtest.Good+"identities: {me: {step: {url: 'https://127.0.0.1:1', fingerprint: "+strings.Repeat("0", 64)+", provisioner: p, names: [a], password_file: "+bad[0].Step.PasswordFile+"}}}")
	var problems *config.Error
	if _, err := m.Prepare(f); !errors.As(err, &problems) || len(problems.Problems) != 1 || problems.Problems[0].Path != "identities.me.step.password_file" {
		t.Errorf("problems %v", err)
	}
}

// parsed is a configuration in /etc/a.
func parsed(t *testing.T, text string) *config.File {
	t.Helper()
	f, err := config.Parse("a.yaml", "/etc/a", []byte(text), cmdtest.Env)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
