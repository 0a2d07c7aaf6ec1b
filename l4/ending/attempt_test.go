package ending

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/l4/starttls"
	"ambassador/policy"
)

// The specification of classify: the side that ended the attempt × the stage.
func TestClassify(t *testing.T) {
	for _, tt := range []struct {
		stage outcome.Stage
		err   error
		want  outcome.Reason
	}{
		{outcome.StagePermit, &outcome.NotReadyError{Err: errors.New("expired")}, outcome.NoIdentity},
		{outcome.StageTLS, &outcome.NotReadyError{Err: errors.New("expired")}, outcome.NoIdentity},
		{outcome.StageDial, &net.DNSError{IsNotFound: true}, outcome.DNS},
		{outcome.StageDial, fmt.Errorf("x: %w", &net.DNSError{IsTimeout: true}), outcome.DNS},
		{outcome.StageDial, l4test.Sys("connect", syscall.ECONNREFUSED), outcome.Refused},
		{outcome.StageDial, l4test.Sys("connect", syscall.ECONNRESET), outcome.Refused},
		{outcome.StageDial, l4test.Sys("connect", syscall.EAGAIN), outcome.Refused},
		{outcome.StageProxy, l4test.Sys("write", syscall.EPIPE), outcome.Refused},
		{outcome.StageProxy, os.ErrDeadlineExceeded, outcome.Timeout},
		{outcome.StageDial, l4test.Sys("connect", syscall.EHOSTUNREACH), outcome.Unreachable},
		{outcome.StageDial, l4test.Sys("connect", syscall.ENETUNREACH), outcome.Unreachable},
		{outcome.StageDial, l4test.Sys("connect", syscall.ENOENT), outcome.Unreachable},
		{outcome.StageDial, l4test.Sys("connect", syscall.EACCES), outcome.Unreachable},
		{outcome.StageDial, l4test.Sys("connect", syscall.ETIMEDOUT), outcome.Timeout},
		{outcome.StageDial, os.ErrDeadlineExceeded, outcome.Timeout},
		{outcome.StageDial, context.DeadlineExceeded, outcome.Timeout},
		{outcome.StageDial, l4test.Sys("socket", syscall.EMFILE), outcome.LocalExhausted},
		{outcome.StageDial, l4test.Sys("connect", syscall.EADDRNOTAVAIL), outcome.LocalExhausted},
		{outcome.StagePermit, ErrTriedAll, outcome.NoEndpoint},
		{outcome.StagePermit, &outcome.Refusal{Reason: outcome.BreakerOpen}, outcome.BreakerOpen},
		{outcome.StageStartTLS, &starttls.RefusedError{}, outcome.StartTLSRefused},
		{outcome.StageStartTLS, &starttls.SideError{Side: starttls.Upstream, Err: io.EOF}, outcome.StartTLSRefused},
		{outcome.StageStartTLS, &starttls.SideError{Side: starttls.Upstream, Err: os.ErrDeadlineExceeded}, outcome.Timeout},
		{outcome.StageTLS, &tls.CertificateVerificationError{Err: errors.New("x")}, outcome.UpstreamTLS},
		{outcome.StageTLS, tls.RecordHeaderError{Msg: "x"}, outcome.UpstreamTLS},
		{outcome.StageTLS, &net.OpError{Op: "local error", Err: errors.New("x")}, outcome.UpstreamTLS},
		{outcome.StageTLS, l4test.AlertError, outcome.UpstreamTLSRejected},
		{outcome.StageTLS, io.EOF, outcome.UpstreamTLS},
		{outcome.StageTLS, l4test.Sys("read", syscall.ECONNRESET), outcome.UpstreamTLS},
		{outcome.StageTLS, context.DeadlineExceeded, outcome.Timeout},
	} {
		if got := Classify(tt.stage, tt.err); got != tt.want {
			t.Errorf("Classify(%s, %v) = %s, want %s", tt.stage, tt.err, got, tt.want)
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
		{down(l4test.Sys("read", syscall.ECONNRESET), true), outcome.Probe},
		{down(l4test.Sys("read", syscall.EHOSTUNREACH), true), outcome.DownstreamLost},
		{up(io.EOF), outcome.UpstreamEarlyClose},
		{up(l4test.Sys("read", syscall.ECONNRESET)), outcome.UpstreamEarlyClose},
		{up(l4test.AlertError), outcome.UpstreamTLSRejected},
		{up(fmt.Errorf("%w (after %w)", l4test.AlertError, &net.OpError{Op: "write", Err: l4test.Sys("write", syscall.ECONNRESET)})), outcome.UpstreamTLSRejected},
		{up(os.ErrDeadlineExceeded), outcome.Timeout},
		{errors.New("what"), outcome.Internal},
	} {
		if got := DialogueReason(tt.err); got != tt.want {
			t.Errorf("DialogueReason(%v) = %s, want %s", tt.err, got, tt.want)
		}
	}
}

func TestOutcomeOf(t *testing.T) {
	busy := &starttls.RefusedError{Protocol: "mysql", Busy: true}
	theirs := &HandshakeError{Err: &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}}
	for _, tt := range []struct {
		reason       outcome.Reason
		err          error
		want, spoken policy.Outcome // before and after a byte from the client
	}{
		{outcome.OK, nil, policy.Success, policy.Success},
		{"", nil, policy.Neutral, policy.Neutral},
		{outcome.DownstreamReset, nil, policy.Neutral, policy.Neutral},
		{outcome.NoIdentity, nil, policy.Neutral, policy.Neutral},
		{outcome.DNS, nil, policy.Neutral, policy.Neutral},
		{outcome.Refused, l4test.Sys("connect", syscall.ECONNREFUSED), policy.Failure, policy.Neutral},
		{outcome.Timeout, context.DeadlineExceeded, policy.Failure, policy.Neutral},
		{outcome.UpstreamEarlyClose, nil, policy.Failure, policy.Neutral},
		{outcome.UpstreamEarlyClose, l4test.Sys("read", syscall.ECONNRESET), policy.Failure, policy.Neutral},
		{outcome.StartTLSRefused, &starttls.RefusedError{}, policy.Failure, policy.Neutral},
		{outcome.StartTLSRefused, &outcome.Error{Err: busy}, policy.Success, policy.Success},
		{outcome.UpstreamTLS, theirs, policy.Failure, policy.Failure},
		{outcome.UpstreamTLS, &relay.TLSError{Err: l4test.AlertFrom(t, 100)}, policy.Failure, policy.Neutral}, // a client can cause a renegotiation
		{outcome.UpstreamTLS, io.EOF, policy.Failure, policy.Neutral},
		{outcome.UpstreamTLS, tls.RecordHeaderError{}, policy.Failure, policy.Neutral},
		{outcome.UpstreamTLSRejected, l4test.AlertFrom(t, 42), policy.Failure, policy.Failure},
		{outcome.UpstreamTLSRejected, l4test.AlertFrom(t, 48), policy.Failure, policy.Failure},
		{outcome.UpstreamTLSRejected, l4test.AlertFrom(t, 116), policy.Failure, policy.Failure},
		{outcome.UpstreamTLSRejected, l4test.AlertFrom(t, 80), policy.Failure, policy.Neutral}, // internal_error
		{outcome.UpstreamTLSRejected, l4test.AlertFrom(t, 40), policy.Failure, policy.Neutral}, // handshake_failure
	} {
		if got, after := OutcomeOf(tt.reason, tt.err, false), OutcomeOf(tt.reason, tt.err, true); got != tt.want || after != tt.spoken {
			t.Errorf("%s, %v: %v, and %v after the client has spoken; want %v, %v", tt.reason, tt.err, got, after, tt.want, tt.spoken)
		}
	}
}
