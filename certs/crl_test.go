package certs

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

type listChange = func(*x509.RevocationList)

// extended adds an extension to a list.
func extended(id asn1.ObjectIdentifier, critical bool, value []byte) listChange {
	return func(l *x509.RevocationList) {
		l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: id, Critical: critical, Value: value})
	}
}

// dated sets when a list is made and when it expires, from now.
func dated(from, to time.Duration) listChange {
	return func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = time.Now().Add(from), time.Now().Add(to)
	}
}

// scoped adds an issuingDistributionPoint.
func scoped(fields ...asn1.RawValue) listChange {
	return extended(oidIssuingDistributionPoint, true, sequence(fields...))
}

func sequence(fields ...asn1.RawValue) []byte { return marshal(fields) }

func marshal(v any) []byte {
	der, err := asn1.Marshal(v)
	if err != nil {
		panic(err) // what a test is made of
	}
	return der
}

// tagged is a context-specific value; compound with der for its content.
func tagged(tag int, compound bool, content ...[]byte) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: compound, Bytes: slices.Concat(content...)}
}

// flag is a field of an issuingDistributionPoint that is true.
func flag(tag int) asn1.RawValue { return tagged(tag, false, []byte{0xff}) }

// point returns the distributionPoint with those URIs.
func point(uris ...string) asn1.RawValue {
	var names [][]byte
	for _, u := range uris {
		names = append(names, marshal(tagged(6, false, []byte(u))))
	}
	return tagged(0, true, marshal(tagged(0, true, names...)))
}

// somePoint returns a certificate whose distribution point has other fields beside
// its name, or instead of it.
func somePoint(fields ...asn1.RawValue) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: oidCRLDistributionPoints, Value: marshal([]asn1.RawValue{{FullBytes: sequence(fields...)}})})
	}
}

var (
	oidUnknown = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}
	null       = []byte{5, 0}
)

// The effect of a list on a leaf whose CA must have one, compared with OpenSSL.
func TestListsLikeOpenSSL(t *testing.T) {
	ca, namesake := newAuthority(t), newAuthority(t)
	other := ca.sub(t)
	silent := newAuthority(t, func(c *x509.Certificate) {
		c.Subject.CommonName, c.KeyUsage = "silent CA", x509.KeyUsageCertSign
	})
	const one = "http://crl.test/1"
	leaf, _ := ca.issue(t, "dns:db.internal")
	pointed, _ := ca.issue(t, "dns:db.internal", func(c *x509.Certificate) { c.CRLDistributionPoints = []string{"http://crl.test/0", one} })
	reasons, _ := ca.issue(t, "dns:db.internal", somePoint(point(one), tagged(1, false, []byte{1, 0x40})))
	indirect, _ := ca.issue(t, "dns:db.internal", somePoint(point(one), tagged(2, true, marshal(tagged(4, true, other.cert.RawSubject)))))
	bySilent, _ := silent.issue(t, "dns:db.internal")
	entry := func(id asn1.ObjectIdentifier, critical bool, value []byte) listChange {
		return func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(77), RevocationTime: time.Now().Add(-time.Minute),
				ExtraExtensions: []pkix.Extension{{Id: id, Critical: critical, Value: value}}}}
		}
	}
	list := func(changes ...listChange) *x509.RevocationList { return ca.revoke(t, nil, changes...) }
	revoking := func(changes ...listChange) *x509.RevocationList {
		return ca.revoke(t, []*big.Int{leaf.SerialNumber}, changes...)
	}
	// OpenSSL checks the indicator of a delta list only with this option, which
	// otherwise makes it accept more.
	options := map[string][]string{"delta": {"-extended_crl"}}
	delta := extended(oidDeltaCRL, true, marshal(1))
	for _, tt := range []struct {
		name  string
		leaf  *x509.Certificate
		lists []*x509.RevocationList
		want  string // part of the error; empty: accepted
		fault string // part of what is said at load; empty: nothing
	}{
		{"a list", leaf, []*x509.RevocationList{list()}, "", ""},
		{"revoked", leaf, []*x509.RevocationList{revoking()}, "was revoked by", ""},
		{"of another CA", leaf, []*x509.RevocationList{other.revoke(t, nil)}, `no revocation list of "CN=test CA" is in the crl file`, ""},
		{"of another CA of that name", leaf, []*x509.RevocationList{namesake.revoke(t, nil)}, "signed by another key", "signed by another key"},
		{"of both of that name", leaf, []*x509.RevocationList{namesake.revoke(t, nil), list()}, "", "signed by another key"},
		{"damaged signature", leaf, []*x509.RevocationList{tampered(t, list())}, "signed by another key", "signed by another key"},

		{"expired", leaf, []*x509.RevocationList{list(dated(-2*time.Hour, -time.Hour))}, "it expired at", "it expired at"},
		{"expired before new", leaf, []*x509.RevocationList{list(dated(-2*time.Hour, -time.Hour)), list()}, "", ""},
		{"new before expired", leaf, []*x509.RevocationList{list(), list(dated(-2*time.Hour, -time.Hour))}, "", ""},
		{"revoked by the newer", leaf, []*x509.RevocationList{list(dated(-2*time.Hour, time.Hour)), revoking()}, "was revoked by", ""},
		{"no longer revoked", leaf, []*x509.RevocationList{revoking(dated(-2*time.Hour, time.Hour)), list()}, "", ""},
		{"no longer revoked, the other way round", leaf, []*x509.RevocationList{list(), revoking(dated(-2*time.Hour, time.Hour))}, "", ""},
		{"from the future", leaf, []*x509.RevocationList{list(dated(time.Hour, 2*time.Hour))}, "is the clock right?", "is the clock right?"},
		{"from the future beside one of now", leaf, []*x509.RevocationList{list(dated(time.Hour, 2*time.Hour)), list()}, "", "is the clock right?"},

		{"delta", leaf, []*x509.RevocationList{list(delta)}, "delta list", "delta list"},
		{"delta beside a complete one", leaf, []*x509.RevocationList{list(delta), list()}, "", "delta list"},
		{"unknown critical extension", leaf, []*x509.RevocationList{list(extended(oidUnknown, true, null))}, "a critical extension that is not known, 1.3.6.1.4.1.99999.1", "not known"},
		{"unknown extension", leaf, []*x509.RevocationList{list(extended(oidUnknown, false, null))}, "", ""},
		{"unknown critical extension of an entry", leaf, []*x509.RevocationList{list(entry(oidUnknown, true, null))}, "a critical extension of an entry that is not known", "not known"},
		{"unknown extension of an entry", leaf, []*x509.RevocationList{list(entry(oidUnknown, false, null))}, "", ""},
		{"entry of another CA", leaf, []*x509.RevocationList{list(scoped(flag(4)), entry(oidCertificateIssuer, true, sequence(tagged(4, true, other.cert.RawSubject))))}, "indirect list", "indirect list"},

		{"for end entities", leaf, []*x509.RevocationList{list(scoped(flag(1)))}, "", ""},
		{"for CAs", leaf, []*x509.RevocationList{list(scoped(flag(2)))}, "for certificates of CAs alone", "for certificates of CAs alone"},
		{"for CAs, and for end entities", leaf, []*x509.RevocationList{list(scoped(flag(2))), list(scoped(flag(1)))}, "", ""},
		{"for both alone", leaf, []*x509.RevocationList{list(scoped(flag(1), flag(2)))}, "cannot be read", "cannot be read"},
		{"for some reasons", leaf, []*x509.RevocationList{list(scoped(tagged(3, false, []byte{1, 0x40})))}, "some of the reasons", "some of the reasons"},
		{"indirect", leaf, []*x509.RevocationList{list(scoped(flag(4)))}, "indirect list", "indirect list"},
		{"for attribute certificates", leaf, []*x509.RevocationList{list(scoped(flag(5)))}, "attribute certificates", "attribute certificates"},
		{"scope that says nothing", leaf, []*x509.RevocationList{list(scoped())}, "", ""},

		{"partition, no point named", leaf, []*x509.RevocationList{list(scoped(point(one)))}, "name its distribution point", "name its distribution point"},
		{"partition, another point named", pointed, []*x509.RevocationList{list(scoped(point("http://crl.test/2")))}, "name its distribution point", "name its distribution point"},
		{"partition, its point named", pointed, []*x509.RevocationList{list(scoped(point("http://crl.test/3", one)))}, "", "name its distribution point"},
		{"partition, its point named for CAs", pointed, []*x509.RevocationList{list(scoped(point(one), flag(2)))}, "for certificates of CAs alone", "name its distribution point"},
		{"partition, its point named for some reasons", reasons, []*x509.RevocationList{list(scoped(point(one)))}, "name its distribution point", "name its distribution point"},
		{"partition, its point named for another CA's list", indirect, []*x509.RevocationList{list(scoped(point(one)))}, "name its distribution point", "name its distribution point"},

		{"of a CA without cRLSign", bySilent, []*x509.RevocationList{silent.revoke(t, nil)}, "lacks the key usage cRLSign", "lacks the key usage cRLSign"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cas := []*x509.Certificate{ca.cert, silent.cert}
			pool := ca.pool()
			pool.AddCert(silent.cert)
			revoked := NewRevocations(tt.lists, cas...)
			j := judge{name: "db.internal", roots: pool, whose: "those given", revoked: revoked, listed: true}
			err := j.verify([]*x509.Certificate{tt.leaf}, time.Now())
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "":
				wantRefusal(t, err, tt.want)
				if !errors.Is(err, ErrRevoked) {
					t.Errorf("%v is no ErrRevoked", err)
				}
			}
			unusable, partial := revoked.Faults(time.Now())
			if said := strings.Join(append(unusable, partial...), "\n"); !strings.Contains(said, tt.fault) || tt.fault == "" && said != "" {
				t.Errorf("said at load: %q; want %q", said, tt.fault)
			}
			if text, accepted := opensslVerify(t, tt.leaf, cas, tt.lists, options[tt.name]...); accepted != (tt.want == "") {
				t.Errorf("openssl accepts it: %v\n%s", accepted, text)
			}
		})
	}
}

// tampered returns a list with a changed signature.
func tampered(t *testing.T, l *x509.RevocationList) *x509.RevocationList {
	t.Helper()
	der := slices.Clone(l.Raw)
	der[len(der)-1] ^= 1
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// opensslVerify asks openssl whether it accepts a leaf. Without openssl on this host
// it ends the test here, as skipped.
func opensslVerify(t *testing.T, leaf *x509.Certificate, cas []*x509.Certificate, lists []*x509.RevocationList, options ...string) (said string, accepted bool) {
	t.Helper()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl to compare with")
	}
	dir := t.TempDir()
	file := func(name, kind string, ders ...[]byte) string {
		var text []byte
		for _, der := range ders {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var roots, crls [][]byte
	for _, c := range cas {
		roots = append(roots, c.Raw)
	}
	for _, l := range lists {
		crls = append(crls, l.Raw)
	}
	args := append([]string{"verify", "-crl_check", "-CAfile", file("ca", "CERTIFICATE", roots...), "-CRLfile", file("crl", "X509 CRL", crls...)}, options...)
	out, err := exec.CommandContext(t.Context(), openssl, append(args, file("leaf", "CERTIFICATE", leaf.Raw))...).CombinedOutput()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	return string(out), err == nil
}

// Two encodings of a CA's name are equal: a list in the other encoding counts.
func TestListInAnotherEncoding(t *testing.T) {
	ca := newAuthority(t)
	leaf, _ := ca.issue(t, "dns:db.internal")
	inUTF8 := *ca.cert
	inUTF8.RawSubject = marshal(pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte("test CA")}}}})
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: leaf.SerialNumber, RevocationTime: time.Now()}}}
	der, err := x509.CreateRevocationList(rand.Reader, template, &inUTF8, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil || string(list.RawIssuer) == string(ca.cert.RawSubject) {
		t.Fatalf("%v; the encodings are the same", err)
	}
	j := judge{name: "db.internal", roots: ca.pool(), whose: "those given", revoked: NewRevocations([]*x509.RevocationList{list})}
	wantRefusal(t, j.verify([]*x509.Certificate{leaf}, time.Now()), "was revoked by")
}

// Any scope is parsed without a panic, and a list with an unreadable scope is not
// used.
func FuzzParseScope(f *testing.F) {
	for _, fields := range [][]asn1.RawValue{{}, {flag(1)}, {flag(2)}, {flag(4)}, {flag(5)}, {point("http://a/b")}, {tagged(0, true)}, {tagged(0, true, marshal(tagged(1, true)))}, {tagged(3, false, []byte{1, 2})}} {
		f.Add(sequence(fields...))
	}
	f.Add([]byte{})
	f.Add(null)
	f.Fuzz(func(t *testing.T, der []byte) {
		s, err := parseScope(der)
		if err == nil && (s.users && s.cas || s.points != nil && len(s.points) == 0) {
			t.Errorf("%x: %+v", der, s)
		}
		c := &x509.Certificate{Extensions: []pkix.Extension{{Id: oidCRLDistributionPoints, Value: der}}}
		if s.points != nil && len(namedPoints(c)) == 0 && s.misses(c) == nil {
			t.Errorf("%x: it speaks for a certificate that names no point", der)
		}
	})
}
