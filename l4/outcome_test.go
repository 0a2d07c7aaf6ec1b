package l4

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"ambassador/l4/preface"
	"ambassador/l4/relay"
	"ambassador/l4/starttls"
)

// alertError is what crypto/tls returns for an alert of the peer.
var alertError = &net.OpError{Op: "remote error", Err: errors.New("tls: certificate required")}

func sys(op string, n syscall.Errno) error {
	return &net.OpError{Op: op, Err: os.NewSyscallError(op, n)}
}

// The specification of classify: who × where.
func TestClassify(t *testing.T) {
	for _, tt := range []struct {
		stage Stage
		err   error
		want  Reason
	}{
		{StagePermit, &notReadyError{errors.New("expired")}, ReasonNoIdentity},
		{StageTLS, &notReadyError{errors.New("expired")}, ReasonNoIdentity},
		{StageDial, &net.DNSError{IsNotFound: true}, ReasonDNS},
		{StageDial, fmt.Errorf("x: %w", &net.DNSError{IsTimeout: true}), ReasonDNS},
		{StageDial, sys("connect", syscall.ECONNREFUSED), ReasonRefused},
		{StageDial, sys("connect", syscall.ECONNRESET), ReasonRefused},
		{StageDial, sys("connect", syscall.EAGAIN), ReasonRefused},
		{StageProxy, sys("write", syscall.EPIPE), ReasonRefused},
		{StageProxy, os.ErrDeadlineExceeded, ReasonTimeout},
		{StageDial, sys("connect", syscall.EHOSTUNREACH), ReasonUnreachable},
		{StageDial, sys("connect", syscall.ENETUNREACH), ReasonUnreachable},
		{StageDial, sys("connect", syscall.ENOENT), ReasonUnreachable},
		{StageDial, sys("connect", syscall.EACCES), ReasonUnreachable},
		{StageDial, sys("connect", syscall.ETIMEDOUT), ReasonTimeout},
		{StageDial, os.ErrDeadlineExceeded, ReasonTimeout},
		{StageDial, context.DeadlineExceeded, ReasonTimeout},
		{StageDial, sys("socket", syscall.EMFILE), ReasonLocalExhausted},
		{StageDial, sys("connect", syscall.EADDRNOTAVAIL), ReasonLocalExhausted},
		{StagePermit, errTriedAll, ReasonNoEndpoint},
		{StagePermit, &Refusal{Reason: ReasonBreakerOpen}, ReasonBreakerOpen},
		{StageStartTLS, &starttls.RefusedError{}, ReasonStartTLSRefused},
		{StageStartTLS, &starttls.SideError{Side: starttls.Upstream, Err: io.EOF}, ReasonStartTLSRefused},
		{StageStartTLS, &starttls.SideError{Side: starttls.Upstream, Err: os.ErrDeadlineExceeded}, ReasonTimeout},
		{StageTLS, &tls.CertificateVerificationError{Err: errors.New("x")}, ReasonUpstreamTLS},
		{StageTLS, tls.RecordHeaderError{Msg: "x"}, ReasonUpstreamTLS},
		{StageTLS, &net.OpError{Op: "local error", Err: errors.New("x")}, ReasonUpstreamTLS},
		{StageTLS, alertError, ReasonUpstreamTLSRejected},
		{StageTLS, io.EOF, ReasonUpstreamTLS},
		{StageTLS, sys("read", syscall.ECONNRESET), ReasonUpstreamTLS},
		{StageTLS, context.DeadlineExceeded, ReasonTimeout},
	} {
		if got := classify(tt.stage, tt.err); got != tt.want {
			t.Errorf("classify(%s, %v) = %s, want %s", tt.stage, tt.err, got, tt.want)
		}
	}
}

func TestDialogueReason(t *testing.T) {
	down := func(err error, clean bool) error {
		return &starttls.SideError{Side: starttls.Downstream, Err: err, Clean: clean}
	}
	up := func(err error) error { return &starttls.SideError{Side: starttls.Upstream, Err: err} }
	for _, tt := range []struct {
		err  error
		want Reason
	}{
		{&starttls.GreetingError{}, ReasonBadGreeting},
		{&starttls.RefusedError{}, ReasonStartTLSRefused},
		{down(io.EOF, true), ReasonProbe},
		{down(io.EOF, false), ReasonBadGreeting},
		{down(io.ErrUnexpectedEOF, false), ReasonBadGreeting},
		{down(os.ErrDeadlineExceeded, true), ReasonHandshakeTimeout},
		{down(sys("read", syscall.ECONNRESET), true), ReasonDownstreamReset},
		{down(sys("read", syscall.EHOSTUNREACH), true), ReasonDownstreamLost},
		{up(io.EOF), ReasonUpstreamEarlyClose},
		{up(sys("read", syscall.ECONNRESET)), ReasonUpstreamEarlyClose},
		{up(alertError), ReasonUpstreamTLSRejected},
		{up(fmt.Errorf("%w (after %w)", alertError, &net.OpError{Op: "write", Err: sys("write", syscall.ECONNRESET)})), ReasonUpstreamTLSRejected},
		{up(os.ErrDeadlineExceeded), ReasonTimeout},
		{errors.New("what"), ReasonInternal},
	} {
		if got := dialogueReason(tt.err); got != tt.want {
			t.Errorf("dialogueReason(%v) = %s, want %s", tt.err, got, tt.want)
		}
	}
}

func TestPrefaceReason(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want Reason
	}{
		{&preface.Error{Err: errors.New("x")}, ReasonBadGreeting},
		{&preface.LoginError{}, ReasonAuthFailed},
		{io.ErrUnexpectedEOF, ReasonBadGreeting},
		{io.EOF, ReasonProbe},
		{os.ErrDeadlineExceeded, ReasonHandshakeTimeout},
		{sys("read", syscall.ECONNRESET), ReasonDownstreamReset},
		{sys("read", syscall.EHOSTUNREACH), ReasonDownstreamLost},
	} {
		if got := prefaceReason(tt.err); got != tt.want {
			t.Errorf("prefaceReason(%v) = %s, want %s", tt.err, got, tt.want)
		}
	}
}

func TestHandshakeReason(t *testing.T) {
	for _, tt := range []struct {
		err   error
		heard bool
		want  Reason
	}{
		{&notReadyError{errors.New("expired")}, true, ReasonNoIdentity},
		{context.DeadlineExceeded, true, ReasonHandshakeTimeout},
		{io.EOF, false, ReasonProbe},
		{io.EOF, true, ReasonDownstreamTLS},
		{sys("read", syscall.ECONNRESET), true, ReasonDownstreamReset},
		{sys("write", syscall.EPIPE), true, ReasonDownstreamReset},
		{alertError, true, ReasonDownstreamTLS},
		{tls.RecordHeaderError{Msg: "x"}, true, ReasonDownstreamTLS},
		{&tls.CertificateVerificationError{Err: errors.New("x")}, true, ReasonDownstreamTLS},
	} {
		if got := handshakeReason(tt.err, tt.heard); got != tt.want {
			t.Errorf("handshakeReason(%v, %v) = %s, want %s", tt.err, tt.heard, got, tt.want)
		}
	}
}

func TestRelayReasonAndSettle(t *testing.T) {
	for _, tt := range []struct {
		name   string
		r      relay.Result
		heard  bool
		want   Reason
		settle Reason
	}{
		{"client closes first after bytes", relay.Result{End: relay.EndClosed, FirstClose: relay.Downstream, Up: 5}, false, ReasonClosed, ReasonOK},
		{"client closes without a byte", relay.Result{End: relay.EndClosed, FirstClose: relay.Downstream}, false, ReasonProbe, ReasonOK},
		{"client closes without a byte after a dialogue", relay.Result{End: relay.EndClosed, FirstClose: relay.Downstream}, true, ReasonClosed, ReasonOK},
		{"server closes at once", relay.Result{End: relay.EndClosed, FirstClose: relay.Upstream}, false, ReasonUpstreamEarlyClose, ReasonUpstreamEarlyClose},
		{"server closes at once after a dialogue", relay.Result{End: relay.EndClosed, FirstClose: relay.Upstream}, true, ReasonClosed, ""},
		{"server closes later", relay.Result{End: relay.EndClosed, FirstClose: relay.Upstream, Settled: true}, false, ReasonClosed, ""},
		{"server resets at once", relay.Result{End: relay.EndUpstreamReset, FirstClose: relay.Upstream}, false, ReasonUpstreamEarlyClose, ReasonUpstreamEarlyClose},
		{"server resets after bytes", relay.Result{End: relay.EndUpstreamReset, FirstClose: relay.Upstream, Down: 1, Settled: true}, false, ReasonUpstreamReset, ""},
		{"server refuses our certificate", relay.Result{End: relay.EndUpstreamReset, FirstClose: relay.Upstream, Err: alertError}, false, ReasonUpstreamTLSRejected, ReasonUpstreamTLSRejected},
		{"after the client's FIN too", relay.Result{End: relay.EndUpstreamReset, FirstClose: relay.Downstream, Err: alertError}, false, ReasonUpstreamTLSRejected, ReasonUpstreamTLSRejected},
		{"an alert after bytes is a reset", relay.Result{End: relay.EndUpstreamReset, FirstClose: relay.Upstream, Err: alertError, Down: 9, Settled: true}, false, ReasonUpstreamReset, ""},
		{"client resets", relay.Result{End: relay.EndDownstreamReset, FirstClose: relay.Downstream}, false, ReasonDownstreamReset, ""},
		{"killed", relay.Result{End: relay.EndStopped, Cause: errKilled}, false, ReasonKilled, ""},
		{"drained", relay.Result{End: relay.EndStopped, Cause: errDrained, Settled: true}, false, ReasonDrained, ""},
		{"idle", relay.Result{End: relay.EndIdle}, false, ReasonIdle, ""},
		{"lifetime", relay.Result{End: relay.EndLifetime}, false, ReasonLifetime, ""},
		{"half-close idle", relay.Result{End: relay.EndHalfCloseIdle}, false, ReasonHalfCloseIdle, ""},
		{"lost", relay.Result{End: relay.EndUpstreamLost}, false, ReasonUpstreamLost, ""},
		{"unknown", relay.Result{End: relay.End(99)}, false, ReasonInternal, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, _ := relayReason(tt.r, tt.heard)
			if got != tt.want {
				t.Errorf("relayReason = %s, want %s", got, tt.want)
			}
			if got := settleReason(got, tt.r); got != tt.settle {
				t.Errorf("settleReason = %q, want %q", got, tt.settle)
			}
		})
	}
}
