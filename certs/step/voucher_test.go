package step

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ambassador/certs"
	"ambassador/certs/embedded"
)

// someCA is a CA, its root, and identities of it.
type someCA struct {
	*embedded.CA
	root *x509.Certificate
}

func newSomeCA(t *testing.T) someCA {
	t.Helper()
	ca, err := embedded.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ca.Close)
	block, _ := pem.Decode(ca.RootPEM())
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return someCA{ca, root}
}

func (a someCA) identity(t *testing.T, names ...string) *tls.Certificate {
	t.Helper()
	cert, err := a.Issue(t.Context(), names, time.Second) // the proof outlives it
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// A CA changes its roots twice, while the fingerprint stays that of the first: the
// stored roots are trusted at each point, and a former root is not.
func TestVouchersFollowTheCA(t *testing.T) {
	a, b, c := newSomeCA(t), newSomeCA(t), newSomeCA(t)
	config := Config{Fingerprint: a.Fingerprint(), Names: []string{"me"}}
	s := storage{t.TempDir()}
	for n, step := range []struct {
		by       someCA
		roots    []someCA
		vouchers int
	}{
		{a, []someCA{a}, 0},
		{a, []someCA{a, b}, 1},
		{b, []someCA{b, a}, 2},
		{b, []someCA{b}, 2},
		{b, []someCA{b}, 2},
		{b, []someCA{b, c}, 2},
		{c, []someCA{c}, 3},
		{c, []someCA{c}, 3},
		{a, []someCA{b, c}, 1}, // a certificate of the root that is gone, until it is renewed
		{b, []someCA{b, c}, 2},
		{c, []someCA{c}, 2},
		{a, []someCA{a, c}, 1},
		{a, []someCA{a}, 0},
	} {
		kept, err := s.load(config)
		if err != nil {
			t.Fatal(err)
		}
		var roots []*x509.Certificate
		for _, r := range step.roots {
			roots = append(roots, r.root)
		}
		identity := step.by.identity(t, "me")
		if err := s.save(config, stored{cert: identity, roots: roots, vouchers: config.vouch(identity, roots, kept)}); err != nil {
			t.Fatal(err)
		}
		kept, err = s.load(config)
		if err != nil || !slices.EqualFunc(kept.roots, roots, (*x509.Certificate).Equal) || len(kept.untrusted) > 0 || len(kept.vouchers) != step.vouchers || config.fits(kept) != nil {
			t.Errorf("step %d: %d of %d roots are trusted, by %d vouchers (want %d), %v, %v", n, len(kept.roots), len(roots), len(kept.vouchers), step.vouchers, err, config.fits(kept))
		}
	}
}

// No forged voucher makes us trust a root that the CA did not give us.
func TestForgedVouchers(t *testing.T) {
	ours, evil := newSomeCA(t), newSomeCA(t)
	config := Config{Fingerprint: ours.Fingerprint(), Names: []string{"me"}}
	roots := []*x509.Certificate{ours.root, evil.root}
	good := func(identity *tls.Certificate, anchor someCA) voucher {
		t.Helper()
		v, ok := newVoucher(identity, roots, []*x509.Certificate{anchor.root}, trusted{sha256.Sum256(anchor.root.Raw): true})
		if !ok {
			t.Fatal("no voucher")
		}
		return v
	}
	base := good(ours.identity(t, "me"), ours)
	stolen := base
	stolen.Roots = append(slices.Clone(base.Roots), make([]byte, 32))
	split := base
	split.Roots = [][]byte{base.Roots[0][:1], append(slices.Clone(base.Roots[0][1:]), base.Roots[1]...)}
	grafted := good(evil.identity(t, "me"), evil)
	grafted.Chain = append(grafted.Chain[:len(grafted.Chain)-1], ours.root.Raw)
	for name, tt := range map[string]struct {
		v    voucher
		want bool
	}{
		"ours":                      {base, true},
		"of another CA":             {good(evil.identity(t, "me"), evil), false},
		"of another workload":       {good(ours.identity(t, "other"), ours), false},
		"of one with more names":    {good(ours.identity(t, "me", "other"), ours), false},
		"another CA below our root": {grafted, false},
		"more roots":                {stolen, false},
		"other pieces":              {split, false},
		"without a chain":           {voucher{Roots: base.Roots, Signature: base.Signature}, false},
		"the root alone":            {voucher{Roots: base.Roots, Signature: base.Signature, Chain: [][]byte{ours.root.Raw}}, false},
		"without a signature":       {voucher{Roots: base.Roots, Chain: base.Chain}, false},
		"nothing":                   {voucher{}, false},
	} {
		trust := config.pinned()
		if got := trust.take(config, tt.v) != nil; got != tt.want || trust.has(evil.root) != tt.want {
			t.Errorf("%s: taken: %v", name, got)
		}
	}
}

// The attack: another user writes to the folder before us an identity, and a roots
// file whose first line has the fingerprint, which is public.
func TestPlantedStorage(t *testing.T) {
	ours, evil := newSomeCA(t), newSomeCA(t)
	plant := func(t *testing.T, dir string, roots ...someCA) {
		t.Helper()
		pair, err := encodePair(evil.identity(t, "me"))
		if err != nil {
			t.Fatal(err)
		}
		text := []byte(rootsLine + ours.Fingerprint() + "\n")
		for _, r := range roots {
			text = append(text, r.RootPEM()...)
		}
		if err := errors.Join(os.WriteFile(filepath.Join(dir, pairFile), pair, 0o600), os.WriteFile(filepath.Join(dir, rootsFile), text, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name    string
		roots   []someCA
		change  func(dir string) error
		refused string // part of the error of Open
		said    string // part of the log, where Open has none
	}{
		{"a folder for everybody", []someCA{evil}, func(dir string) error { return os.Chmod(dir, 0o777) }, "others may write it (mode 0777)", ""},
		{"a folder of another user", []someCA{evil}, func(dir string) error { return giveAway(t, dir) }, "belongs to uid 4711", ""},
		{"a pair of another user", []someCA{ours, evil}, func(dir string) error { return giveAway(t, filepath.Join(dir, pairFile)) }, "", "belongs to uid 4711"},
		{"roots of another user", []someCA{evil}, func(dir string) error { return giveAway(t, filepath.Join(dir, rootsFile)) }, "", "belongs to uid 4711"},
		{"a pair that others can read", []someCA{ours}, func(dir string) error { return os.Chmod(filepath.Join(dir, pairFile), 0o644) }, "", "others may read this secret"},
		{"roots that others can write", []someCA{evil}, func(dir string) error { return os.Chmod(filepath.Join(dir, rootsFile), 0o666) }, "", "others may write it"},
		{"the fingerprint in a comment", []someCA{evil}, func(string) error { return nil }, "", "neither has the configured fingerprint nor is vouched for"},
		{"the root beside the attacker's", []someCA{ours, evil}, func(string) error { return nil }, "", "no trusted root in roots.pem vouches for it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			plant(t, dir, tt.roots...)
			if err := tt.change(dir); err != nil {
				t.Fatal(err)
			}
			s, log := certs.NewSource("me"), &lines{}
			config := Config{URL: "https://127.0.0.1:1", Fingerprint: ours.Fingerprint(), Names: []string{"me"}, Storage: dir}
			i, err := Open(config, s, slog.New(slog.NewTextHandler(log, nil)))
			if (err == nil) != (tt.refused == "") || err != nil && !strings.Contains(err.Error(), tt.refused) {
				t.Fatalf("opened: %v; want %q", err, tt.refused)
			}
			if !strings.Contains(log.String(), tt.said) {
				t.Errorf("log: %s\nwant one with %q", log, tt.said)
			}
			if s.Ready() == nil || i != nil && slices.ContainsFunc(i.known(), evil.root.Equal) || Stored(config) {
				t.Errorf("what was planted is used: %+v", s.Status())
			}
			warnings, err := CheckStorage(config)
			if text := strings.Join(warnings, "\n"); err == nil && text == "" && !strings.Contains(tt.said, "vouches for it") {
				t.Errorf("CheckStorage says nothing")
			}
		})
	}
}

// giveAway makes a file another user's; only root can.
func giveAway(t *testing.T, path string) error {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	return os.Lchown(path, 4711, 4711)
}
