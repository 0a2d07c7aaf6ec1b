package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
)

// ErrNotReady is wrapped by the error of a Source that has nothing it may offer.
// It concerns that identity only: a connection that needs it ends with
// no_identity, and the next can succeed once the issuer has published a good
// generation.
var ErrNotReady = errors.New("not ready")

// Snapshot is one generation of an identity. It is immutable, and so is all that
// it points to.
type Snapshot struct {
	// Certificate is our chain and key, its Leaf set. Nil: the identity has only
	// roots.
	Certificate *tls.Certificate
	// Roots verify peers. Nil: the identity brings none.
	Roots *Roots
	// Generation rises by one with each new content, from 1.
	Generation uint64
}

// Source hands out the current generation of one identity, fed by one issuer
// through Publish and Fail. Make it with NewSource. It is safe for concurrent
// use; Current is one atomic read.
type Source struct {
	// OnPanic, if it is not nil, is called for each panic that has been recovered, with
	// the part in which it was: issuer, roots, files or source. Set it before the source
	// is in use. It is called from several goroutines.
	OnPanic func(part string)

	name    string
	current atomic.Pointer[Snapshot]
	renewer atomic.Pointer[Renewer] // nil: the issuer comes by itself
	due     atomic.Int64            // when the renewer's next try is, in ns since 1970; 0: never

	mu      sync.Mutex
	status  Status        // guarded by mu; without Ready and Reason
	changed chan struct{} // guarded by mu; closed at the next change
}

// Status is what is known of an identity, for people and metrics. Strings are
// empty and times zero where there is nothing to say.
type Status struct {
	Name string
	// Ready says whether the identity may be used now; if not, Reason says why.
	Ready  bool
	Reason string
	// Subject, Issuer, Names (the SANs: "dns:db.internal", "ip:10.0.0.7",
	// "spiffe://corp/orders"), Serial (hexadecimal) and the validity are the
	// current certificate's.
	Subject, Issuer     string
	Names               []string
	Serial              string
	NotBefore, NotAfter time.Time
	// Generation is the current one's, LoadedAt when it was published.
	Generation uint64
	LoadedAt   time.Time
	// LastError is why the issuer's last try failed; empty after a good one.
	LastError   string
	LastErrorAt time.Time
	// Loads counts generations, Failures the issuer's tries that made none.
	Loads, Failures uint64
	// NextRenewal is when the issuer is asked next; zero if it comes by itself.
	NextRenewal time.Time
}

// NewSource makes a source that is not ready. The name is for people.
func NewSource(name string) *Source {
	return &Source{name: name, status: Status{Name: name}, changed: make(chan struct{})}
}

// Publish makes cert, whose Leaf is set, and roots the current generation; either
// may be nil. What they point to must not be modified afterwards. It reports
// whether they are new: the same certificates again only clear LastError.
func (s *Source) Publish(cert *tls.Certificate, roots *Roots) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, failed := s.current.Load(), s.status.LastError != ""
	s.status.LastError, s.status.LastErrorAt = "", time.Time{}
	if old != nil && sameCertificate(old.Certificate, cert) && old.Roots.equal(roots) {
		if failed {
			s.announce()
		}
		return false
	}
	st := s.status
	s.status = Status{Name: st.Name, Generation: st.Generation + 1, Loads: st.Loads + 1, Failures: st.Failures, LoadedAt: time.Now()}
	if cert != nil {
		s.status.describe(cert.Leaf)
	}
	s.current.Store(&Snapshot{Certificate: cert, Roots: roots, Generation: s.status.Generation})
	s.announce()
	return true
}

// PublishRoots makes other roots current, beside the certificate that is. It
// reports whether they are new; without a generation yet it does nothing. What is
// known of the certificate, its last failure included, stays.
func (s *Source) PublishRoots(roots *Roots) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.current.Load()
	if old == nil || old.Roots.equal(roots) {
		return false
	}
	s.status.Generation++
	s.current.Store(&Snapshot{Certificate: old.Certificate, Roots: roots, Generation: s.status.Generation})
	s.announce()
	return true
}

// sameCertificate compares chains. The key needs no comparison: each was found to
// be the one of its leaf.
func sameCertificate(a, b *tls.Certificate) bool {
	if a == nil || b == nil {
		return a == b
	}
	return slices.EqualFunc(a.Certificate, b.Certificate, slices.Equal[[]byte])
}

func (st *Status) describe(leaf *x509.Certificate) {
	st.Subject, st.Issuer = leaf.Subject.String(), leaf.Issuer.String()
	st.Names, st.Serial = names(leaf), fmt.Sprintf("%x", leaf.SerialNumber)
	st.NotBefore, st.NotAfter = leaf.NotBefore, leaf.NotAfter
}

// Fail notes that the issuer could not make a new generation. The current one
// stays in use.
func (s *Source) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Failures++
	s.status.LastError, s.status.LastErrorAt = err.Error(), time.Now()
	s.announce()
}

// announce is called with mu held.
func (s *Source) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Changed returns a channel that is closed at the next change of what Status
// tells, but for the passing of time. Get it before you look.
func (s *Source) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Current is the generation to use now. The error wraps ErrNotReady and says why
// there is none.
func (s *Source) Current() (*Snapshot, error) {
	now := time.Now()
	snap := s.current.Load()
	if due := s.due.Load(); due != 0 && now.UnixNano() >= due { // the machine may have slept
		s.renewer.Load().nudge()
	}
	if err := usable(snap, now); err != nil {
		return nil, s.notReady(err)
	}
	return snap, nil
}

// Await is Ready, but that it waits while the issuer is being asked, or should
// be: all who wait, wait for the same try. The end of ctx ends the wait, not the
// try.
func (s *Source) Await(ctx context.Context) error {
	err := s.Ready()
	r := s.renewer.Load()
	if err == nil || r == nil {
		return err
	}
	end, began := r.join(time.Now())
	if end == nil {
		return s.Ready() // the try may have ended since
	}
	select {
	case <-end:
		return s.Ready()
	case <-ctx.Done():
		return fmt.Errorf("%w; the issuer has not answered for %s", err, time.Since(began).Round(time.Millisecond))
	}
}

// serveBy says who renews. It is called once, before the source is in use.
func (s *Source) serveBy(r *Renewer) { s.renewer.Store(r) }

// schedule notes when the next try is.
func (s *Source) schedule(next time.Time) { s.due.Store(next.UnixNano()) }

// valid is nil if there is a generation that may be used now.
func (s *Source) valid(now time.Time) error { return usable(s.current.Load(), now) }

// Ready is the error that Current would return; nil if there would be none.
func (s *Source) Ready() error {
	_, err := s.Current()
	return err
}

// notReady adds to err what the issuer said last.
func (s *Source) notReady(err error) error {
	s.mu.Lock()
	last := s.status.LastError
	s.mu.Unlock()
	if last != "" {
		return fmt.Errorf("identity %s %w: %w; the last try to load it: %s", s.name, ErrNotReady, err, last)
	}
	return fmt.Errorf("identity %s %w: %w", s.name, ErrNotReady, err)
}

// usable judges a generation at a moment.
func usable(s *Snapshot, now time.Time) error {
	switch {
	case s == nil:
		return errors.New("there is no certificate yet")
	case s.Certificate == nil:
		return nil
	}
	return Validity(s.Certificate.Leaf, now)
}

// ValidityError is a certificate that is not valid at a moment: Now is outside of
// NotBefore to NotAfter.
type ValidityError struct{ NotBefore, NotAfter, Now time.Time }

func (e *ValidityError) Error() string {
	if e.Now.After(e.NotAfter) {
		return fmt.Sprintf("the certificate expired at %s, %s ago", e.NotAfter.UTC().Format(time.RFC3339), e.Now.Sub(e.NotAfter).Round(time.Second))
	}
	return fmt.Sprintf("the certificate is not valid before %s, in %s; is the clock right?", e.NotBefore.UTC().Format(time.RFC3339), e.NotBefore.Sub(e.Now).Round(time.Second))
}

// Validity is nil if the certificate is valid at a moment, else a *ValidityError.
func Validity(c *x509.Certificate, now time.Time) error {
	if now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return &ValidityError{c.NotBefore, c.NotAfter, now}
	}
	return nil
}

// Status is what is known now.
func (s *Source) Status() Status {
	err := s.Ready()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	st.Names = slices.Clone(st.Names)
	if st.Ready = err == nil; !st.Ready {
		st.Reason = err.Error()
	}
	if due := s.due.Load(); due != 0 {
		st.NextRenewal = time.Unix(0, due)
	}
	return st
}

// names lists a certificate's SANs as principals are written, where they have a
// form.
func names(c *x509.Certificate) []string {
	var out []string
	for _, uri := range uris(c) {
		if CheckSPIFFEID(uri) == nil {
			out = append(out, uri)
		} else {
			out = append(out, "uri:"+printable(uri))
		}
	}
	for _, d := range c.DNSNames {
		out = append(out, "dns:"+printable(d))
	}
	for _, ip := range c.IPAddresses {
		out = append(out, "ip:"+net.IP(ip).String())
	}
	for _, e := range c.EmailAddresses {
		out = append(out, "email:"+printable(e))
	}
	return out
}

// printable replaces control letters: names go to logs and terminals.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
