package step

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"ambassador/certs"
)

// Config is an identity at a step-ca.
type Config struct {
	// URL is the CA's: https://HOST:PORT.
	URL string
	// Fingerprint is the SHA-256 of its root certificate, in hexadecimal.
	Fingerprint string
	// Provisioner and PasswordFile enrol with a JWK provisioner whose key the CA
	// keeps. TokenFile enrols with a one-time token instead, which is read again
	// for each enrolment.
	Provisioner, PasswordFile, TokenFile string
	// Names are the SANs: DNS names, IP addresses, URIs ("spiffe://corp/orders"),
	// e-mail addresses. The first is also the subject's common name.
	Names []string
	// Lifetime is the requested lifetime of certificates. If zero, the
	// provisioner's default.
	Lifetime time.Duration
	// Storage is a folder that keeps certificate, key and roots. If empty, they
	// are kept in memory only.
	Storage string
}

// Key is equal for equal configurations only.
func (c Config) Key() string { return fmt.Sprintf("%#v", c) }

// ParseFingerprint parses a SHA-256 in hexadecimal, with or without colons.
func ParseFingerprint(s string) (string, error) {
	plain := strings.ToLower(strings.NewReplacer(":", "", "-", "").Replace(s))
	if b, err := hex.DecodeString(plain); err != nil || len(b) != 32 {
		return "", errors.New("not the SHA-256 of a certificate, which is 64 hexadecimal digits; see it with: step certificate fingerprint root_ca.crt, or: openssl x509 -in root_ca.crt -noout -fingerprint -sha256")
	}
	return plain, nil
}

// ParseURL checks the URL of a CA.
func ParseURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf("%q is no URL of a step-ca; write https://HOST:PORT", s)
	}
	return nil
}

// ParseName checks one of Config.Names.
func ParseName(s string) error {
	if _, ok := strings.CutPrefix(s, "dns:"); ok {
		return fmt.Errorf("%q: leave dns: out, and write the name alone", s)
	}
	u, err := url.Parse(s)
	switch {
	case strings.HasPrefix(s, "spiffe://"):
		if err := certs.CheckSPIFFEID(s); err != nil {
			return fmt.Errorf("%q: %w", s, err)
		}
	case strings.Contains(s, "://"):
		if err != nil || u.Host == "" {
			return fmt.Errorf("%q is no URI", s)
		}
	case s == "" || strings.ContainsAny(s, " \t\n/\\"):
		return fmt.Errorf("%q is no name; write a DNS name, an IP address, a URI (spiffe://…) or an e-mail address", s)
	}
	return nil
}

// Issuer keeps a source current with certificates of a step-ca. Make it with
// Open.
type Issuer struct {
	// Static after construction.
	cfg     Config
	source  *certs.Source
	renewer *certs.Renewer
	log     *slog.Logger
	storage storage

	mu     sync.Mutex
	roots  []*x509.Certificate // guarded by mu; of the CA and its federation; empty: only the fingerprint is known
	spent  string              // guarded by mu; the last token of TokenFile that the CA answered
	answer error               // guarded by mu; its answer; nil: a certificate

	logged string // owned by followRoots; the last failure that was logged
}

// Open makes an issuer, and publishes the identity in storage. It contacts
// nobody: Run does. It returns an error if the storage folder cannot be used, or
// others can write to it. If the stored identity is missing or damaged, that is
// logged, and Run enrols.
func Open(c Config, s *certs.Source, log *slog.Logger) (*Issuer, error) {
	c.Fingerprint, _ = ParseFingerprint(c.Fingerprint) // the caller has checked it
	i := &Issuer{cfg: c, source: s, log: log, storage: storage{c.Storage}}
	if err := i.storage.prepare(); err != nil {
		return nil, err
	}
	var kept stored
	err := s.Guard(certs.PartIssuer, func() (err error) {
		kept, err = i.storage.load(c)
		return err
	})
	if err == nil {
		err = c.fits(kept)
	}
	if err != nil {
		log.Warn("stored identity not used, a new one is enrolled", append([]any{"identity", s.Status().Name}, certs.Cause(err)...)...)
	}
	for _, text := range kept.warnings(c) {
		log.Warn("stored root not used", "identity", s.Status().Name, "cause", text)
	}
	i.roots = kept.roots
	if err == nil && kept.cert != nil {
		s.Publish(kept.cert, pooled(i.roots))
	}
	i.renewer = certs.NewRenewer(s, i.issue, log)
	return i, nil
}

// Stored reports whether storage has a certificate as configured, so that no
// token is needed. It does not check whether the certificate is still valid.
func Stored(c Config) bool {
	c.Fingerprint, _ = ParseFingerprint(c.Fingerprint)
	kept, err := storage{c.Storage}.load(c)
	return err == nil && kept.cert != nil && c.fits(kept) == nil
}

// CheckStorage returns an error if the storage folder or a file in it cannot be
// used, and warnings about content that is not used. A missing folder is fine.
func CheckStorage(c Config) (warnings []string, err error) {
	c.Fingerprint, _ = ParseFingerprint(c.Fingerprint)
	kept, err := storage{c.Storage}.load(c)
	return kept.warnings(c), err
}

// warnings names the stored roots that are not trusted.
func (s stored) warnings(c Config) (out []string) {
	for _, r := range s.untrusted {
		out = append(out, fmt.Sprintf("%s has a root (%s, fingerprint %x) that neither has the configured fingerprint nor is vouched for by one that has; it is not used unless the CA gives it again",
			filepath.Join(c.Storage, rootsFile), r.Subject, sha256.Sum256(r.Raw)))
	}
	return out
}

// fits returns an error if the stored identity is not of this configuration.
func (c Config) fits(kept stored) error {
	if kept.cert == nil {
		return nil
	}
	chain, err := parseDER(kept.cert.Certificate)
	switch {
	case err != nil:
		return err
	case len(kept.roots) == 0 && len(kept.untrusted) == 0:
		return fmt.Errorf("there is a certificate, but no %s with its CA's roots", rootsFile)
	case len(kept.roots) == 0:
		return fmt.Errorf("it is of the CA with fingerprint %x", sha256.Sum256(kept.untrusted[0].Raw))
	case !slices.ContainsFunc(kept.anchors, func(r *x509.Certificate) bool { return leadsTo(chain, r) }):
		return fmt.Errorf("no trusted root in %s vouches for it", rootsFile)
	}
	return c.wants(kept.cert.Leaf)
}

// Run enrols, renews and follows the CA's roots until ctx ends. It leaves no
// goroutine behind, and is called once.
func (i *Issuer) Run(ctx context.Context) {
	var followed sync.WaitGroup
	followed.Go(func() { i.followRoots(ctx) })
	i.renewer.Run(ctx)
	followed.Wait()
}

// wants returns an error if a certificate is not for the configured names.
func (c Config) wants(leaf *x509.Certificate) error {
	have, want := namesOf(leaf), slices.Clone(c.Names)
	for i, name := range want {
		if ip := net.ParseIP(name); ip != nil {
			want[i] = ip.String()
		}
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		return fmt.Errorf("it is for %s, not for %s", strings.Join(have, ", "), strings.Join(want, ", "))
	}
	return nil
}

// namesOf returns the SANs in the form of Config.Names.
func namesOf(leaf *x509.Certificate) []string {
	out := append(slices.Clone(leaf.DNSNames), leaf.EmailAddresses...)
	for _, ip := range leaf.IPAddresses {
		out = append(out, net.IP(ip).String())
	}
	for _, u := range leaf.URIs {
		out = append(out, u.String())
	}
	return out
}

func pooled(roots []*x509.Certificate) *certs.Roots {
	return certs.RootsOf(roots)
}

func (i *Issuer) known() []*x509.Certificate {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.roots
}

// issue is one attempt of the renewer.
func (i *Issuer) issue(ctx context.Context, now *tls.Certificate) (*tls.Certificate, *certs.Roots, error) {
	unlock, err := i.storage.lock(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if kept := i.newer(now); kept.cert != nil {
		i.setRoots(kept.roots)
		return kept.cert, pooled(kept.roots), nil
	}
	conn, err := i.dial(ctx)
	if err != nil {
		return nil, nil, i.failed(err)
	}
	defer conn.close()
	cert, err := i.obtain(ctx, conn, now)
	if err != nil {
		return nil, nil, i.failed(err)
	}
	if roots, err := conn.fetchRoots(ctx); err == nil { // followRoots reports an error
		conn.roots = roots
	}
	i.setRoots(conn.roots)
	kept, _ := i.storage.load(i.cfg) // damaged storage has no vouchers
	if err := i.storage.save(i.cfg, stored{cert: cert, roots: conn.roots, vouchers: i.cfg.vouch(cert, conn.roots, kept)}); err != nil {
		i.log.Error("identity not stored: after a restart it must be enrolled again", "identity", i.source.Status().Name, "cause", err.Error())
	}
	return cert, pooled(conn.roots), nil
}

func (i *Issuer) failed(err error) error { return fmt.Errorf("step-ca %s: %w", i.cfg.URL, err) }

// setRoots publishes roots at once, and logs a change.
func (i *Issuer) setRoots(roots []*x509.Certificate) (changed bool) {
	i.mu.Lock()
	old := i.roots
	i.roots = roots
	i.mu.Unlock()
	changed = i.source.PublishRoots(pooled(roots))
	if changed && len(old) > 0 {
		i.log.Info("roots changed", "identity", i.source.Status().Name, "old", len(old), "roots", len(roots))
	}
	return changed
}

// newer returns the identity that another process has stored since; its cert is
// nil if there is none better than now.
func (i *Issuer) newer(now *tls.Certificate) stored {
	kept, err := i.storage.load(i.cfg)
	if err != nil || kept.cert == nil || i.cfg.fits(kept) != nil ||
		certs.Validity(kept.cert.Leaf, time.Now()) != nil || now != nil && !kept.cert.Leaf.NotAfter.After(now.Leaf.NotAfter) {
		return stored{}
	}
	return kept
}

// obtain tries in this order: rekey, renew with a token, enrol. It goes on to the
// next only if the CA refuses; if the CA cannot be reached, the renewer tries
// again later.
func (i *Issuer) obtain(ctx context.Context, conn *conn, now *tls.Certificate) (*tls.Certificate, error) {
	if now == nil {
		return i.enrol(ctx, conn)
	}
	renew := conn.rekey
	if certs.Validity(now.Leaf, time.Now()) != nil {
		renew = conn.renewExpired
	}
	cert, err := renew(ctx, now)
	if err == nil || !refused(err) {
		return cert, err
	}
	cert, enrolErr := i.enrol(ctx, conn)
	if enrolErr != nil {
		return nil, fmt.Errorf("renew: %w; enrol anew: %w", err, enrolErr)
	}
	return cert, nil
}

// enrol requests a certificate with a token.
func (i *Issuer) enrol(ctx context.Context, conn *conn) (*tls.Certificate, error) {
	if i.cfg.TokenFile == "" {
		token, err := i.makeToken(ctx, conn)
		if err != nil {
			return nil, err
		}
		return conn.sign(ctx, token, i.cfg.Names, i.cfg.Lifetime)
	}
	token, err := i.readToken()
	if err != nil {
		return nil, err
	}
	cert, err := conn.sign(ctx, token, i.cfg.Names, i.cfg.Lifetime)
	if err == nil || refused(err) {
		i.mu.Lock()
		i.spent, i.answer = token, err
		i.mu.Unlock()
	}
	return cert, err
}

const (
	// The roots are fetched at every tenth of a certificate's life, within these
	// bounds: a CA that changes its root serves both for longer than that.
	shortestFollow = time.Second
	longestFollow  = 5 * time.Minute
)

// followRoots fetches new roots of the CA and of its federation, until ctx ends.
// It begins at once: they may have changed while no process ran.
func (i *Issuer) followRoots(ctx context.Context) {
	for ctx.Err() == nil {
		if len(i.known()) > 0 { // else issue fetches them with the first certificate
			i.updateRoots(ctx)
		}
		every := shortestFollow
		if st := i.source.Status(); !st.NotAfter.IsZero() {
			every = max(min(st.NotAfter.Sub(st.NotBefore)/10, longestFollow), shortestFollow)
		}
		certs.Pause(ctx, every)
	}
}

// updateRoots fetches the roots once, with a timeout.
func (i *Issuer) updateRoots(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, certs.TryTimeout)
	defer cancel()
	err := i.source.Guard(certs.PartRoots, func() error { return i.takeRoots(ctx) })
	switch {
	case err == nil:
		i.logged = ""
	case err.Error() != i.logged && ctx.Err() != context.Canceled:
		i.logged = err.Error()
		i.log.Warn("roots not refreshed", append([]any{"identity", i.source.Status().Name}, certs.Cause(err)...)...)
	}
}

// takeRoots publishes the CA's current roots, and stores them if they are new. A
// failure to store them is logged.
func (i *Issuer) takeRoots(ctx context.Context) error {
	roots, err := i.askRoots(ctx)
	if err != nil {
		return err
	}
	if !i.setRoots(roots) {
		return nil
	}
	if _, others := i.cfg.pinned().sort(roots); len(others) == len(roots) {
		i.log.Warn("the CA has no root with the configured fingerprint any more; set fingerprint to one that it has: without storage, a start fails",
			"identity", i.source.Status().Name, "fingerprint", fmt.Sprintf("%x", sha256.Sum256(roots[0].Raw)))
	}
	if err := i.storeRoots(ctx, roots); err != nil {
		i.log.Error("roots not stored", "identity", i.source.Status().Name, "cause", err.Error())
	}
	return nil
}

// storeRoots stores roots with vouchers of the stored identity.
func (i *Issuer) storeRoots(ctx context.Context, roots []*x509.Certificate) error {
	unlock, err := i.storage.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	kept, err := i.storage.load(i.cfg)
	if err != nil {
		return err
	}
	return i.storage.saveRoots(i.cfg, stored{roots: roots, vouchers: i.cfg.vouch(kept.cert, roots, kept)})
}

func (i *Issuer) askRoots(ctx context.Context) ([]*x509.Certificate, error) {
	conn, err := i.dial(ctx)
	if err != nil {
		return nil, i.failed(err)
	}
	defer conn.close()
	roots, err := conn.fetchRoots(ctx)
	if err != nil {
		return nil, i.failed(err)
	}
	return roots, nil
}
