package livetest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/outcome"
)

// seen is what was seen of the certificates of one handshake. The handshake writes it,
// and it is read after that.
type seen struct {
	config   *tls.Config
	peer     []*x509.Certificate
	verified bool
	skipped  bool // the certificate was not judged
	trusted  bool // the certificate is itself a root
	version  uint16
	asked    bool             // the server asked for our certificate
	sent     *tls.Certificate // nil: none
	withhold error            // why none could be sent
}

// watched returns a copy of cfg that reports to s.
func (s *seen) watched(cfg *tls.Config) *tls.Config {
	c := cfg.Clone()
	verify, get := cfg.VerifyConnection, cfg.GetClientCertificate
	s.skipped = verify == nil
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		s.peer, s.version = cs.PeerCertificates, cs.Version
		if verify != nil {
			if err := verify(cs); err != nil {
				return err
			}
		}
		s.verified = true
		return nil
	}
	if get == nil { // tlscause tells by this that we have none
		return c
	}
	c.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := get(asked)
		if asked.Version != 0 { // tlscause asks with an empty request
			s.asked, s.sent, s.withhold = true, cert, err
		}
		return cert, err
	}
	return c
}

// stages tells how the attempt went that ended with err.
func (t *tester) stages(ctx context.Context, key, first string, err *outcome.Error, dial time.Duration) (out []Stage) {
	at := Answer
	if err != nil {
		at = t.stageOf(err, t.saw(key))
	}
	add := func(name, detail string) bool {
		if name == at && err != nil {
			out = append(out, failedWith(name, err))
			return false
		}
		out = append(out, Stage{Name: name, OK: true, Detail: detail})
		return true
	}
	if at == Identity && t.saw(key) == nil { // no attempt is made without it
		add(Identity, "")
		return out
	}
	took := ""
	if dial > 0 {
		took = outcome.Seconds(dial).String()
	}
	if !add(Connect, took) ||
		t.cfg.ProxyProtocol != 0 && !add(Proxy, fmt.Sprintf("the header of version %d was sent", t.cfg.ProxyProtocol)) ||
		t.cfg.StartTLS != "" && !add(StartTLS, t.cfg.StartTLS+": the server agreed to TLS") ||
		t.cfg.TLS != nil && !t.addTLS(&out, add, at, key) {
		return out
	}
	add(Answer, t.answer(first, awaited(ctx)))
	return out
}

// addTLS adds the stages of TLS. It returns false if one of them failed.
func (t *tester) addTLS(out *[]Stage, add func(name, detail string) bool, at, key string) bool {
	s := t.saw(key)
	if at == TLS {
		return add(TLS, "")
	}
	if s == nil || len(s.peer) == 0 {
		return true
	}
	server := t.describe(s)
	ok := add(Certificate, server.text(s))
	(*out)[len(*out)-1].Server = server
	if !ok {
		(*out)[len(*out)-1].Detail = (*out)[len(*out)-1].Detail + " (" + server.text(s) + ")"
		return false
	}
	return add(Identity, s.ours(t.cfg.TLS != nil && t.section.TLS.Identity != ""))
}

// stageOf says at which stage the attempt ended.
func (t *tester) stageOf(err *outcome.Error, s *seen) string {
	switch {
	case err.Reason == outcome.NoIdentity:
		return Identity
	case err.Reason == outcome.DNS:
		return Resolve
	case err.Stage == outcome.StageDial, err.Stage == outcome.StagePermit, err.Stage == outcome.StageRoute:
		return Connect
	case err.Stage == outcome.StageProxy:
		return Proxy
	case err.Stage == outcome.StageStartTLS:
		return StartTLS
	case err.Stage != outcome.StageTLS:
		return Answer
	case s == nil || len(s.peer) == 0:
		if err.Reason == outcome.UpstreamTLSRejected && s != nil && s.asked {
			return Identity
		}
		return TLS
	case !s.verified:
		return Certificate
	case err.Reason == outcome.UpstreamTLSRejected:
		return Identity
	}
	return Answer
}

// awaited says how long the server's first words were awaited. Ctx ends with the test.
func awaited(ctx context.Context) string {
	if ctx.Err() != nil {
		return "until --timeout ended the test"
	}
	return "for " + patience.String()
}

// answer describes what the server said first.
func (t *tester) answer(first, awaited string) string {
	h := &t.cfg.Health
	switch {
	case h.LogIn != nil:
		return "the login succeeded"
	case h.Expect != "":
		return fmt.Sprintf("the server said %q, which has health.expect", first)
	case first != "":
		return fmt.Sprintf("the server said %q", first)
	case t.cfg.TLS == nil && t.cfg.StartTLS == "":
		return fmt.Sprintf("the server said nothing %s, and did not close: it waits for the client", awaited)
	}
	return fmt.Sprintf("the server refused nothing %s: it waits for the client", awaited)
}

// check asks the question of health.http.
func (t *tester) check(ctx context.Context, address string) Stage {
	at, err := netip.ParseAddrPort(address)
	if err == nil {
		err = t.cfg.Health.Check(ctx, at.Addr())
	}
	if err != nil {
		return failed(Check, outcome.Timeout, err)
	}
	return Stage{Name: Check, OK: true, Detail: "health.http answered as wanted"}
}

// ours describes what became of our certificate.
func (s *seen) ours(configured bool) string {
	switch {
	case s.asked && s.sent != nil && len(s.sent.Certificate) > 0:
		leaf := s.sent.Leaf
		if leaf == nil {
			leaf, _ = x509.ParseCertificate(s.sent.Certificate[0])
		}
		if leaf == nil {
			return "the server accepted our certificate"
		}
		return fmt.Sprintf("the server asked for our certificate, and did not refuse %q (%s)", nameOf(leaf), left(leaf.NotAfter, time.Now()))
	case configured:
		return "the server did not ask for our certificate, and was not shown it"
	}
	return "we have none, and the server did not refuse that"
}

// describe describes the server's certificate.
func (t *tester) describe(s *seen) *ServerCertificate {
	leaf := s.peer[0]
	out := &ServerCertificate{Subject: leaf.Subject.String(), Names: []string{}, Issuer: leaf.Issuer.String(), NotAfter: leaf.NotAfter,
		DaysLeft: int(time.Until(leaf.NotAfter) / (24 * time.Hour))}
	out.Names = append(out.Names, leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		out.Names = append(out.Names, ip.String())
	}
	for _, u := range leaf.URIs {
		out.Names = append(out.Names, u.String())
	}
	if s.verified && !s.skipped && t.chained() {
		var pools []*x509.CertPool
		out.Roots, pools = t.roots()
		if root := rootOf(s.peer, pools); root != nil {
			out.Root = root.Subject.String()
			s.trusted = root.Equal(leaf)
		}
	}
	return out
}

// chained reports whether a chain to a root was verified, and not only a key.
func (t *tester) chained() bool {
	for _, p := range t.section.TLS.Principals {
		if strings.HasPrefix(p, "spki:") {
			return false
		}
	}
	return true
}

// rootOf returns the certificate among the roots with which the peer's chain verified;
// nil if none of the pools has it. A nil pool is the system's. The root may be the leaf
// itself, or an intermediate certificate: crypto/x509 trusts what a pool has.
func rootOf(peer []*x509.Certificate, pools []*x509.CertPool) *x509.Certificate {
	intermediates := x509.NewCertPool()
	for _, c := range peer[1:] {
		intermediates.AddCert(c)
	}
	for _, pool := range pools {
		chains, err := peer[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if err == nil {
			return chains[0][len(chains[0])-1]
		}
	}
	return nil
}

// roots returns the pools that may verify the server, and says where they are from. A nil
// pool is the system's.
func (t *tester) roots() (from string, pools []*x509.CertPool) {
	section := t.section.TLS
	system := []*x509.CertPool{nil}
	if section.CA == "system" {
		return "the system's roots", system
	}
	if section.CA != "" {
		return section.CA, poolsOf(t.named.Roots(t.section.CAFile()))
	}
	if pools := poolsOf(t.named.Identity(section.Identity)); len(pools) > 0 {
		return "the roots of identity " + section.Identity, pools
	}
	return "the system's roots", system
}

// poolsOf returns the roots of a source, those of other trust domains included.
func poolsOf(source *certs.Source) (pools []*x509.CertPool) {
	if source == nil {
		return nil
	}
	now, err := source.Current()
	if err != nil || now.Roots == nil || now.Roots.Pool == nil {
		return nil
	}
	return slices.AppendSeq([]*x509.CertPool{now.Roots.Pool}, maps.Values(now.Roots.Domains))
}

// text is the certificate in one line.
func (c *ServerCertificate) text(s *seen) string {
	text := fmt.Sprintf("%q, issued by %q, %s", nameOf(s.peer[0]), c.Issuer, left(c.NotAfter, time.Now()))
	switch {
	case s.trusted:
		text += "; it is itself among the roots in " + c.Roots
	case c.Root != "":
		text += fmt.Sprintf("; root %q in %s", c.Root, c.Roots)
	case c.Roots != "":
		text += "; verified with " + c.Roots
	case s.skipped:
		text += "; not verified (tls.unsafe_skip_verify)"
	case s.verified:
		text += "; its key is pinned by tls.principals"
	}
	return text + "; " + tls.VersionName(s.version)
}

// nameOf is the subject of a certificate, or its first name.
func nameOf(c *x509.Certificate) string {
	switch {
	case len(c.Subject.Names) > 0:
		return c.Subject.String()
	case len(c.DNSNames) > 0:
		return c.DNSNames[0]
	case len(c.URIs) > 0:
		return c.URIs[0].String()
	case len(c.IPAddresses) > 0:
		return c.IPAddresses[0].String()
	}
	return "serial " + c.SerialNumber.String()
}

// left says how long a certificate is still valid.
func left(until, now time.Time) string {
	if d := until.Sub(now); d > 0 {
		return output.Age(d) + " left"
	}
	return "expired " + output.Age(now.Sub(until)) + " ago"
}

// failedWith is a stage that ended with the error of an attempt.
func failedWith(name string, err *outcome.Error) Stage {
	cause := err.Err
	if cause == nil {
		cause = err
	}
	return failed(name, err.Reason, cause)
}

func failed(name string, reason outcome.Reason, err error) Stage {
	text, fix := outcome.CauseAndFix(err)
	text = strings.ReplaceAll(text, context.DeadlineExceeded.Error(), "no answer in time")
	if fix == "" && reason != "" {
		fix = outcome.Advice(reason)
	}
	return Stage{Name: name, Detail: text, Reason: reason, Hint: fix}
}
