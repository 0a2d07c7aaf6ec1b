package spiffe

import (
	"context"
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

// Workload keeps a source current with the updates of an agent. Make it with New.
type Workload struct {
	// Static after construction.
	socket string
	source *certs.Source
	log    *slog.Logger
	name   string // of the identity

	logged string // owned by Run; the last failure that was logged
}

// New makes a workload of a socket that passed CheckSocket. It does not connect:
// Run does.
func New(socket string, s *certs.Source, log *slog.Logger) *Workload {
	return &Workload{socket: socket, source: s, log: log, name: s.Status().Name}
}

const (
	// firstAnswer bounds the wait for the first answer of an agent.
	firstAnswer = 10 * time.Second
	// The pause before the next connection to the agent. While we have no identity it
	// is always the shortest, so that an agent that starts is noticed at once.
	shortestPause = time.Second
	longestPause  = 30 * time.Second
)

// Run receives updates from the agent until ctx ends. It leaves no goroutine
// behind, and is called once.
func (w *Workload) Run(ctx context.Context) {
	pause := shortestPause
	for ctx.Err() == nil {
		var answered bool
		err := w.source.Guard(certs.PartIssuer, func() (err error) {
			answered, err = w.listen(ctx)
			return err
		})
		if ctx.Err() != nil {
			return
		}
		w.failed(err)
		pause = min(2*pause, longestPause)
		if answered || w.source.Ready() != nil {
			pause = shortestPause
		}
		certs.Pause(ctx, pause)
	}
}

// failed reports a failure to the source, and logs it once.
func (w *Workload) failed(err error) {
	err = fmt.Errorf("SPIFFE agent at %s: %w", w.socket, err)
	w.source.Fail(err)
	if text := err.Error(); text != w.logged {
		w.logged = text
		w.log.Warn("identity not renewed", append([]any{"identity", w.name}, certs.Cause(err)...)...)
	}
}

var errSilent = fmt.Errorf("it has not answered for %v", firstAnswer)

// listen processes updates until the first error, which it returns. It makes a
// new client for each attempt: a client that failed to connect waits for up to
// two minutes before it tries again.
func (w *Workload) listen(ctx context.Context) (answered bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(w.socket))
	if err != nil {
		return false, err
	}
	defer client.Close()
	timeout := time.AfterFunc(firstAnswer, func() { cancel(errSilent) })
	defer timeout.Stop()
	l := &listener{workload: w, end: cancel, timeout: timeout}
	err = client.WatchX509Context(ctx, l)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answered, err
}

// listener receives go-spiffe's calls.
type listener struct {
	workload *Workload
	end      context.CancelCauseFunc
	timeout  *time.Timer

	mu       sync.Mutex
	answered bool // guarded by mu; an update has arrived
}

// OnX509ContextUpdate processes an update.
func (l *listener) OnX509ContextUpdate(c *workloadapi.X509Context) {
	l.timeout.Stop()
	l.mu.Lock()
	l.answered = true
	l.mu.Unlock()
	if err := l.workload.take(c); err != nil {
		l.end(err)
	}
}

// OnX509ContextWatchError ends listen, because Run has its own pauses.
func (l *listener) OnX509ContextWatchError(err error) { l.end(err) }

// take publishes an update. An identity that is not valid now does not replace a
// valid one.
func (w *Workload) take(c *workloadapi.X509Context) error {
	if len(c.SVIDs) == 0 {
		return errors.New("it has no identity for us")
	}
	svid := c.DefaultSVID()
	roots := &certs.Roots{Domains: map[string]*x509.CertPool{}}
	for _, bundle := range c.Bundles.Bundles() {
		roots.Domains[bundle.TrustDomain().Name()] = certs.NewPool(bundle.X509Authorities())
		if bundle.TrustDomain() == svid.ID.TrustDomain() {
			roots.Known = bundle.X509Authorities()
		}
	}
	if roots.Pool = roots.Domains[svid.ID.TrustDomain().Name()]; roots.Pool == nil {
		return fmt.Errorf("it gives no roots of our own trust domain, %s", svid.ID.TrustDomain())
	}
	cert := certs.NewCertificate(svid.PrivateKey, svid.Certificates)
	if err := certs.Validity(cert.Leaf, time.Now()); err != nil && w.source.Ready() == nil {
		return err
	}
	old := w.source.Status()
	if w.source.Publish(cert, roots) {
		w.source.LogRenewal(w.log, old)
	}
	return nil
}
