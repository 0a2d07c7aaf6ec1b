// Package spiffe is an issuer: it takes an identity from a SPIFFE Workload API
// agent (SPIRE's, say) as it comes, by go-spiffe's client.
//
// # Promised
//
// The agent may come later, and may go: what it gave is used as long as it is
// valid. The roots of each trust domain, our own and those it is federated with,
// vouch for SPIFFE IDs of that domain alone. No wait but the one for the next
// update is without a bound.
//
// # Not promised
//
// Of several identities that the agent has for us, the first is used.
package spiffe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"ambassador/certs"
)

// CheckSocket checks the address of an agent: unix:/path or unix:///path.
func CheckSocket(s string) error {
	if err := workloadapi.ValidateAddress(s); err != nil || len(s) < 5 || s[:5] != "unix:" {
		return fmt.Errorf("%q is no socket of a SPIFFE agent; write unix:///path/of/the/socket", s)
	}
	return nil
}

// Workload keeps a source current with what an agent says. Make it with New.
type Workload struct {
	// Static after construction.
	socket string
	source *certs.Source
	log    *slog.Logger
	name   string // of the identity

	said string // owned by Run; the last failure that was logged
}

// New makes a workload of a socket that CheckSocket has passed. Nobody is
// contacted: that is Run's.
func New(socket string, s *certs.Source, log *slog.Logger) *Workload {
	return &Workload{socket: socket, source: s, log: log, name: s.Status().Name}
}

const (
	// firstAnswer bounds the wait for the first answer of an agent.
	firstAnswer = 10 * time.Second
	// The pause before the agent is spoken to again: always the shortest while we
	// have nothing, so that it is seen at once when it comes.
	shortestPause = time.Second
	longestPause  = 30 * time.Second
)

// Run listens to the agent until ctx ends. It leaves no goroutine behind, and is
// called once.
func (w *Workload) Run(ctx context.Context) {
	pause := shortestPause
	for ctx.Err() == nil {
		var heard bool
		err := w.source.Guard(certs.PartIssuer, func() (err error) {
			heard, err = w.listen(ctx)
			return err
		})
		if ctx.Err() != nil {
			return
		}
		w.failed(err)
		pause = min(2*pause, longestPause)
		if heard || w.source.Ready() != nil {
			pause = shortestPause
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// failed tells the source, and the log once.
func (w *Workload) failed(err error) {
	err = fmt.Errorf("SPIFFE agent at %s: %w", w.socket, err)
	w.source.Fail(err)
	if text := err.Error(); text != w.said {
		w.said = text
		w.log.Warn("identity not renewed", append([]any{"identity", w.name}, certs.Cause(err)...)...)
	}
}

var errSilent = fmt.Errorf("it has not answered for %v", firstAnswer)

// listen takes updates until the first error, which it returns. A new client for
// each try: one that failed to connect waits for up to two minutes before it does
// again.
func (w *Workload) listen(ctx context.Context) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(w.socket))
	if err != nil {
		return false, err
	}
	defer client.Close()
	silence := time.AfterFunc(firstAnswer, func() { cancel(errSilent) })
	defer silence.Stop()
	l := &listener{workload: w, end: cancel, silence: silence}
	err = client.WatchX509Context(ctx, l)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heard, err
}

// listener is what go-spiffe calls.
type listener struct {
	workload *Workload
	end      context.CancelCauseFunc
	silence  *time.Timer

	mu    sync.Mutex
	heard bool // guarded by mu
}

// OnX509ContextUpdate takes an update.
func (l *listener) OnX509ContextUpdate(c *workloadapi.X509Context) {
	l.silence.Stop()
	l.mu.Lock()
	l.heard = true
	l.mu.Unlock()
	if err := l.workload.take(c); err != nil {
		l.end(err)
	}
}

// OnX509ContextWatchError ends listening: we have our own pauses.
func (l *listener) OnX509ContextWatchError(err error) { l.end(err) }

// take publishes an update. One that is not valid now replaces none that is.
func (w *Workload) take(c *workloadapi.X509Context) error {
	if len(c.SVIDs) == 0 {
		return errors.New("it has no identity for us")
	}
	svid := c.DefaultSVID()
	roots := &certs.Roots{Domains: map[string]*x509.CertPool{}}
	for _, bundle := range c.Bundles.Bundles() {
		pool := x509.NewCertPool()
		for _, root := range bundle.X509Authorities() {
			pool.AddCert(root)
		}
		roots.Domains[bundle.TrustDomain().Name()] = pool
	}
	if roots.Pool = roots.Domains[svid.ID.TrustDomain().Name()]; roots.Pool == nil {
		return fmt.Errorf("it gives no roots of our own trust domain, %s", svid.ID.TrustDomain())
	}
	cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, crt := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, crt.Raw)
	}
	if err := certs.Validity(cert.Leaf, time.Now()); err != nil && w.source.Ready() == nil {
		return err
	}
	old := w.source.Status()
	if w.source.Publish(cert, roots) {
		st := w.source.Status()
		w.log.Info("identity renewed", "identity", w.name, "generation", st.Generation, "names", st.Names,
			"old_serial", old.Serial, "serial", st.Serial, "old_not_after", old.NotAfter, "not_after", st.NotAfter)
	}
	return nil
}
