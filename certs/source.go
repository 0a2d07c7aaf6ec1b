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

// ErrNotReady is wrapped by the error of a Source without a usable generation. It
// affects only that identity: a connection that needs it ends with no_identity,
// and the next can succeed once the issuer has published a good generation.
var ErrNotReady = errors.New("not ready")

// Snapshot is one generation of an identity. It is immutable, and so is all that
// it points to.
type Snapshot struct {
	// Certificate is our chain and key, with its Leaf set. Nil: the identity has
	// only roots.
	Certificate *tls.Certificate
	// Roots verify peers. Nil: the identity has none.
	Roots *Roots
	// Generation starts at 1 and increases by one with each change of content.
	Generation uint64
}

// Source holds the current generation of one identity, which one issuer feeds
// through Publish and Fail. Make it with NewSource. It is safe for concurrent
// use; Current is one atomic read.
type Source struct {
	// OnPanic, if not nil, is called for each recovered panic, with the part in
	// which it happened: issuer, roots, files or source. Set it before the source
	// is in use. Several goroutines call it.
	OnPanic func(part string)

	name    string
	current atomic.Pointer[Snapshot]
	renewer atomic.Pointer[Renewer] // nil: the issuer pushes
	due     atomic.Int64            // when the renewer's next attempt is due, in ns since 1970; 0: never

	mu      sync.Mutex
	status  Status        // guarded by mu; without Ready and Reason
	changed chan struct{} // guarded by mu; closed at the next change
}

// Status describes an identity, for people and metrics. Unknown strings are
// empty, and unknown times zero.
type Status struct {
	Name string
	// Ready says whether the identity can be used now; if not, Reason says why.
	Ready  bool
	Reason string
	// Subject, Issuer, Names (the SANs: "dns:db.internal", "ip:10.0.0.7",
	// "spiffe://corp/orders"), Serial (hexadecimal) and the validity are the
	// current certificate's.
	Subject, Issuer     string
	Names               []string
	Serial              string
	NotBefore, NotAfter time.Time
	// Generation is the current one; it was published at LoadedAt.
	Generation uint64
	LoadedAt   time.Time
	// LastError is the failure of the issuer's last attempt; empty after a success.
	LastError   string
	LastErrorAt time.Time
	// Loads counts generations, Failures the issuer's failed attempts.
	Loads, Failures uint64
	// NextRenewal is when the issuer is asked next; zero if the issuer pushes.
	NextRenewal time.Time
	// Warnings are why peers may reject the certificate, and what else is wrong with an
	// identity that can be used. A Source leaves it empty: it does not know the use.
	Warnings []string
}

// NewSource makes a source that is not ready. The name is for logs and messages.
func NewSource(name string) *Source {
	return &Source{name: name, status: Status{Name: name}, changed: make(chan struct{})}
}

// Publish makes cert, whose Leaf is set, and roots the current generation; either
// may be nil. The objects they point to must not be modified afterwards. It
// reports whether they are new: publishing the same certificates again only
// clears LastError.
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

// PublishRoots replaces the roots and keeps the certificate. It reports whether
// the roots are new; before the first generation it does nothing. The
// certificate's status, its last failure included, stays.
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

// sameCertificate compares chains. It need not compare keys: each was checked to
// match its leaf.
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

// Fail records that the issuer could not make a new generation. The current one
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

// Changed returns a channel that is closed at the next change of Status, except
// for changes by the passing of time. Get the channel before you read the status.
func (s *Source) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Current returns the generation to use now. The error wraps ErrNotReady and says
// why there is none.
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

// Await is Ready, but waits while the issuer is being asked, or is due to be. All
// waiters share one attempt. The end of ctx ends the wait, not the attempt.
func (s *Source) Await(ctx context.Context) error {
	err := s.Ready()
	r := s.renewer.Load()
	if err == nil || r == nil {
		return err
	}
	end, began := r.join(time.Now())
	if end == nil {
		return s.Ready() // the attempt may have ended since
	}
	select {
	case <-end:
		return s.Ready()
	case <-ctx.Done():
		return fmt.Errorf("%w; the issuer has not answered for %s", err, time.Since(began).Round(time.Millisecond))
	}
}

// serveBy sets the renewer. It is called once, before the source is in use.
func (s *Source) serveBy(r *Renewer) { s.renewer.Store(r) }

// schedule records when the next attempt is due.
func (s *Source) schedule(next time.Time) { s.due.Store(next.UnixNano()) }

// valid returns nil if the current generation can be used now.
func (s *Source) valid(now time.Time) error { return usable(s.current.Load(), now) }

// Ready returns the error that Current would return.
func (s *Source) Ready() error {
	_, err := s.Current()
	return err
}

// notReady adds the issuer's last error to err.
func (s *Source) notReady(err error) error {
	s.mu.Lock()
	last := s.status.LastError
	s.mu.Unlock()
	if last != "" {
		return fmt.Errorf("identity %s %w: %w; the last attempt to load it: %s", s.name, ErrNotReady, err, last)
	}
	return fmt.Errorf("identity %s %w: %w", s.name, ErrNotReady, err)
}

// usable returns nil if a generation can be used at now.
func usable(s *Snapshot, now time.Time) error {
	switch {
	case s == nil:
		return errors.New("there is no certificate yet")
	case s.Certificate == nil:
		return nil
	}
	return Validity(s.Certificate.Leaf, now)
}

// ValidityError says that a certificate is not valid: Now is outside of NotBefore
// to NotAfter.
type ValidityError struct{ NotBefore, NotAfter, Now time.Time }

func (e *ValidityError) Error() string {
	if e.Now.After(e.NotAfter) {
		return fmt.Sprintf("the certificate expired at %s, %s ago", e.NotAfter.UTC().Format(time.RFC3339), age(e.Now.Sub(e.NotAfter)))
	}
	return fmt.Sprintf("the certificate is not valid before %s, in %s; is the clock right?", e.NotBefore.UTC().Format(time.RFC3339), age(e.NotBefore.Sub(e.Now)))
}

// Validity returns nil if the certificate is valid at now, else a *ValidityError.
func Validity(c *x509.Certificate, now time.Time) error {
	if now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return &ValidityError{c.NotBefore, c.NotAfter, now}
	}
	return nil
}

// Status returns the current status.
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

// names lists a certificate's SANs, in the form of principals if there is one.
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

// printable replaces control characters: names go to logs and terminals.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
