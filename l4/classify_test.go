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

	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/l4/relay"
	"ambassador/l4/starttls"
)

// alertError is the error that crypto/tls returns for an alert of the peer.
var alertError = &net.OpError{Op: "remote error", Err: errors.New("tls: certificate required")}

func sys(op string, n syscall.Errno) error {
	return &net.OpError{Op: op, Err: os.NewSyscallError(op, n)}
}

// The specification of classify: the side that ended the attempt × the stage.
func TestClassify(t *testing.T) {
	for _, tt := range []struct {
		stage outcome.Stage
		err   error
		want  outcome.Reason
	}{
		{outcome.StagePermit, &notReadyError{errors.New("expired")}, outcome.NoIdentity},
		{outcome.StageTLS, &notReadyError{errors.New("expired")}, outcome.NoIdentity},
		{outcome.StageDial, &net.DNSError{IsNotFound: true}, outcome.DNS},
		{outcome.StageDial, fmt.Errorf("x: %w", &net.DNSError{IsTimeout: true}), outcome.DNS},
		{outcome.StageDial, sys("connect", syscall.ECONNREFUSED), outcome.Refused},
		{outcome.StageDial, sys("connect", syscall.ECONNRESET), outcome.Refused},
		{outcome.StageDial, sys("connect", syscall.EAGAIN), outcome.Refused},
		{outcome.StageProxy, sys("write", syscall.EPIPE), outcome.Refused},
		{outcome.StageProxy, os.ErrDeadlineExceeded, outcome.Timeout},
		{outcome.StageDial, sys("connect", syscall.EHOSTUNREACH), outcome.Unreachable},
		{outcome.StageDial, sys("connect", syscall.ENETUNREACH), outcome.Unreachable},
		{outcome.StageDial, sys("connect", syscall.ENOENT), outcome.Unreachable},
		{outcome.StageDial, sys("connect", syscall.EACCES), outcome.Unreachable},
		{outcome.StageDial, sys("connect", syscall.ETIMEDOUT), outcome.Timeout},
		{outcome.StageDial, os.ErrDeadlineExceeded, outcome.Timeout},
		{outcome.StageDial, context.DeadlineExceeded, outcome.Timeout},
		{outcome.StageDial, sys("socket", syscall.EMFILE), outcome.LocalExhausted},
		{outcome.StageDial, sys("connect", syscall.EADDRNOTAVAIL), outcome.LocalExhausted},
		{outcome.StagePermit, errTriedAll, outcome.NoEndpoint},
		{outcome.StagePermit, &outcome.Refusal{Reason: outcome.BreakerOpen}, outcome.BreakerOpen},
		{outcome.StageStartTLS, &starttls.RefusedError{}, outcome.StartTLSRefused},
		{outcome.StageStartTLS, &starttls.SideError{Side: starttls.Upstream, Err: io.EOF}, outcome.StartTLSRefused},
		{outcome.StageStartTLS, &starttls.SideError{Side: starttls.Upstream, Err: os.ErrDeadlineExceeded}, outcome.Timeout},
		{outcome.StageTLS, &tls.CertificateVerificationError{Err: errors.New("x")}, outcome.UpstreamTLS},
		{outcome.StageTLS, tls.RecordHeaderError{Msg: "x"}, outcome.UpstreamTLS},
		{outcome.StageTLS, &net.OpError{Op: "local error", Err: errors.New("x")}, outcome.UpstreamTLS},
		{outcome.StageTLS, alertError, outcome.UpstreamTLSRejected},
		{outcome.StageTLS, io.EOF, outcome.UpstreamTLS},
		{outcome.StageTLS, sys("read", syscall.ECONNRESET), outcome.UpstreamTLS},
		{outcome.StageTLS, context.DeadlineExceeded, outcome.Timeout},
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
		want outcome.Reason
	}{
		{&starttls.GreetingError{}, outcome.BadGreeting},
		{&starttls.RefusedError{}, outcome.StartTLSRefused},
		{down(io.EOF, true), outcome.Probe},
		{down(io.EOF, false), outcome.BadGreeting},
		{down(io.ErrUnexpectedEOF, false), outcome.BadGreeting},
		{down(os.ErrDeadlineExceeded, true), outcome.HandshakeTimeout},
		{down(sys("read", syscall.ECONNRESET), true), outcome.DownstreamReset},
		{down(sys("read", syscall.EHOSTUNREACH), true), outcome.DownstreamLost},
		{up(io.EOF), outcome.UpstreamEarlyClose},
		{up(sys("read", syscall.ECONNRESET)), outcome.UpstreamEarlyClose},
		{up(alertError), outcome.UpstreamTLSRejected},
		{up(fmt.Errorf("%w (after %w)", alertError, &net.OpError{Op: "write", Err: sys("write", syscall.ECONNRESET)})), outcome.UpstreamTLSRejected},
		{up(os.ErrDeadlineExceeded), outcome.Timeout},
		{errors.New("what"), outcome.Internal},
	} {
		if got := dialogueReason(tt.err); got != tt.want {
			t.Errorf("dialogueReason(%v) = %s, want %s", tt.err, got, tt.want)
		}
	}
}

func TestPrefaceReason(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want outcome.Reason
	}{
		{&preface.Error{Err: errors.New("x")}, outcome.BadGreeting},
		{&preface.LoginError{}, outcome.AuthFailed},
		{io.ErrUnexpectedEOF, outcome.BadGreeting},
		{io.EOF, outcome.Probe},
		{os.ErrDeadlineExceeded, outcome.HandshakeTimeout},
		{sys("read", syscall.ECONNRESET), outcome.DownstreamReset},
		{sys("read", syscall.EHOSTUNREACH), outcome.DownstreamLost},
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
		want  outcome.Reason
	}{
		{&notReadyError{errors.New("expired")}, true, outcome.NoIdentity},
		{context.DeadlineExceeded, true, outcome.HandshakeTimeout},
		{io.EOF, false, outcome.Probe},
		{io.EOF, true, outcome.DownstreamTLS},
		{sys("read", syscall.ECONNRESET), true, outcome.DownstreamReset},
		{sys("write", syscall.EPIPE), true, outcome.DownstreamReset},
		{alertError, true, outcome.DownstreamTLS},
		{tls.RecordHeaderError{Msg: "x"}, true, outcome.DownstreamTLS},
		{&tls.CertificateVerificationError{Err: errors.New("x")}, true, outcome.DownstreamTLS},
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
		want   outcome.Reason
		settle outcome.Reason
	}{
		{"client closes first after bytes", relay.Result{End: relay.EndClosed, FirstClose: relay.Downstream, Up: 5}, false, outcome.Closed, outcome.OK},
		{"client closes without a byte", relay.Result{End: relay.EndClosed, FirstClose: relay.Downstream}, false, outcome.Probe, outcome.OK},
		{"client closes without a byte after a dialogue", relay.Result{End: relay.EndClosed, FirstClose: relay.Downstream}, true, outcome.Closed, outcome.OK},
		{"server closes at once", relay.Result{End: relay.EndClosed, FirstClose: relay.Upstream}, false, outcome.UpstreamEarlyClose, outcome.UpstreamEarlyClose},
		{"server closes at once after a dialogue", relay.Result{End: relay.EndClosed, FirstClose: relay.Upstream}, true, outcome.Closed, ""},
		{"server closes later", relay.Result{End: relay.EndClosed, FirstClose: relay.Upstream, Settled: true}, false, outcome.Closed, ""},
		{"server resets at once", relay.Result{End: relay.EndUpstreamReset, FirstClose: relay.Upstream}, false, outcome.UpstreamEarlyClose, outcome.UpstreamEarlyClose},
		{"server resets after bytes", relay.Result{End: relay.EndUpstreamReset, FirstClose: relay.Upstream, Down: 1, Settled: true}, false, outcome.UpstreamReset, ""},
		{"server refuses our certificate", relay.Result{End: relay.EndUpstreamReset, FirstClose: relay.Upstream, Err: alertError}, false, outcome.UpstreamTLSRejected, outcome.UpstreamTLSRejected},
		{"after the client's FIN too", relay.Result{End: relay.EndUpstreamReset, FirstClose: relay.Downstream, Err: alertError}, false, outcome.UpstreamTLSRejected, outcome.UpstreamTLSRejected},
		{"an alert after bytes is a reset", relay.Result{End: relay.EndUpstreamReset, FirstClose: relay.Upstream, Err: alertError, Down: 9, Settled: true}, false, outcome.UpstreamReset, ""},
		{"client resets", relay.Result{End: relay.EndDownstreamReset, FirstClose: relay.Downstream}, false, outcome.DownstreamReset, ""},
		{"killed", relay.Result{End: relay.EndStopped, Cause: errKilled}, false, outcome.Killed, ""},
		{"drained", relay.Result{End: relay.EndStopped, Cause: errDrained, Settled: true}, false, outcome.Drained, ""},
		{"idle", relay.Result{End: relay.EndIdle}, false, outcome.Idle, ""},
		{"lifetime", relay.Result{End: relay.EndLifetime}, false, outcome.Lifetime, ""},
		{"half-close idle", relay.Result{End: relay.EndHalfCloseIdle}, false, outcome.HalfCloseIdle, ""},
		{"lost", relay.Result{End: relay.EndUpstreamLost}, false, outcome.UpstreamLost, ""},
		{"unknown", relay.Result{End: relay.End(99)}, false, outcome.Internal, ""},
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
