package ending

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/l4/relay"
	"ambassador/l4/starttls"
)

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
		{l4test.Sys("read", syscall.ECONNRESET), outcome.Probe},
		{&preface.InsideError{Err: l4test.Sys("read", syscall.ECONNRESET)}, outcome.DownstreamReset},
		{&preface.InsideError{Err: os.ErrDeadlineExceeded}, outcome.HandshakeTimeout},
		{l4test.Sys("read", syscall.EHOSTUNREACH), outcome.DownstreamLost},
	} {
		if got := PrefaceReason(tt.err); got != tt.want {
			t.Errorf("PrefaceReason(%v) = %s, want %s", tt.err, got, tt.want)
		}
	}
}

func TestHandshakeReason(t *testing.T) {
	for _, tt := range []struct {
		err     error
		reasons bool
		want    outcome.Reason
	}{
		{&outcome.NotReadyError{Err: errors.New("expired")}, true, outcome.NoIdentity},
		{context.DeadlineExceeded, true, outcome.HandshakeTimeout},
		{io.EOF, false, outcome.Probe},
		{io.EOF, true, outcome.DownstreamTLS},
		{l4test.Sys("read", syscall.ECONNRESET), false, outcome.Probe},
		{l4test.Sys("read", syscall.ECONNRESET), true, outcome.DownstreamReset},
		{l4test.Sys("write", syscall.EPIPE), true, outcome.DownstreamReset},
		{l4test.AlertError, true, outcome.DownstreamTLS},
		{tls.RecordHeaderError{Msg: "x"}, true, outcome.DownstreamTLS},
		{&tls.CertificateVerificationError{Err: errors.New("x")}, true, outcome.DownstreamTLS},
	} {
		if got := HandshakeReason(tt.err, tt.reasons); got != tt.want {
			t.Errorf("HandshakeReason(%v, %v) = %s, want %s", tt.err, tt.reasons, got, tt.want)
		}
	}
}

func TestRelayReasonAndSettle(t *testing.T) {
	for _, tt := range []struct {
		name    string
		r       relay.Result
		reasons bool
		want    outcome.Reason
		settle  outcome.Reason
	}{
		{"client closes first after bytes", relay.Result{End: relay.EndClosed, FirstClose: relay.Downstream, Up: 5}, false, outcome.Closed, outcome.OK},
		{"client closes without a byte", relay.Result{End: relay.EndClosed, FirstClose: relay.Downstream}, false, outcome.Probe, outcome.OK},
		{"client closes without a byte after a dialogue", relay.Result{End: relay.EndClosed, FirstClose: relay.Downstream}, true, outcome.Closed, outcome.OK},
		{"server closes at once", relay.Result{End: relay.EndClosed, FirstClose: relay.Upstream}, false, outcome.UpstreamEarlyClose, outcome.UpstreamEarlyClose},
		{"server closes at once after a dialogue", relay.Result{End: relay.EndClosed, FirstClose: relay.Upstream}, true, outcome.Closed, ""},
		{"server closes later", relay.Result{End: relay.EndClosed, FirstClose: relay.Upstream, Settled: true}, false, outcome.Closed, ""},
		{"server resets at once", relay.Result{End: relay.EndUpstreamReset, FirstClose: relay.Upstream}, false, outcome.UpstreamEarlyClose, outcome.UpstreamEarlyClose},
		{"server resets after bytes", relay.Result{End: relay.EndUpstreamReset, FirstClose: relay.Upstream, Down: 1, Settled: true}, false, outcome.UpstreamReset, ""},
		{"server refuses our certificate", relay.Result{End: relay.EndUpstreamTLS, Err: l4test.AlertError}, false, outcome.UpstreamTLSRejected, outcome.UpstreamTLSRejected},
		{"after the client's FIN too", relay.Result{End: relay.EndUpstreamTLS, FirstClose: relay.Downstream, Err: l4test.AlertError}, false, outcome.UpstreamTLSRejected, outcome.UpstreamTLSRejected},
		{"an alert after bytes is no reset", relay.Result{End: relay.EndUpstreamTLS, Err: l4test.AlertError, Down: 9, Settled: true}, false, outcome.UpstreamTLSRejected, outcome.UpstreamTLSRejected},
		{"our TLS fails", relay.Result{End: relay.EndUpstreamTLS, Err: tls.RecordHeaderError{}, Down: 9, Settled: true}, false, outcome.UpstreamTLS, outcome.UpstreamTLS},
		{"the client's TLS fails", relay.Result{End: relay.EndDownstreamTLS, Err: l4test.AlertError}, false, outcome.DownstreamTLS, ""},
		{"client resets", relay.Result{End: relay.EndDownstreamReset, FirstClose: relay.Downstream, Up: 1}, false, outcome.DownstreamReset, ""},
		{"client resets without a byte", relay.Result{End: relay.EndDownstreamReset, FirstClose: relay.Downstream}, false, outcome.Probe, ""},
		{"client resets after a dialogue", relay.Result{End: relay.EndDownstreamReset, FirstClose: relay.Downstream}, true, outcome.DownstreamReset, ""},
		{"killed", relay.Result{End: relay.EndStopped, Cause: &Stop{Reason: outcome.Killed}}, false, outcome.Killed, ""},
		{"drained", relay.Result{End: relay.EndStopped, Cause: &Stop{Reason: outcome.Drained}, Settled: true}, false, outcome.Drained, ""},
		{"idle", relay.Result{End: relay.EndIdle}, false, outcome.Idle, ""},
		{"lifetime", relay.Result{End: relay.EndLifetime}, false, outcome.Lifetime, ""},
		{"half-close idle", relay.Result{End: relay.EndHalfCloseIdle}, false, outcome.HalfCloseIdle, ""},
		{"lost", relay.Result{End: relay.EndUpstreamLost}, false, outcome.UpstreamLost, ""},
		{"unknown", relay.Result{End: relay.End(99)}, false, outcome.Internal, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, _ := RelayReason(tt.r, tt.reasons)
			if got != tt.want {
				t.Errorf("RelayReason = %s, want %s", got, tt.want)
			}
			if got := SettleReason(got, tt.r); got != tt.settle {
				t.Errorf("SettleReason = %q, want %q", got, tt.settle)
			}
		})
	}
}

// A reset after the client's own end is a normal end where the protocol's servers do
// so; elsewhere it is a reset that says what may be lost.
func TestResetAfterTheClientsEnd(t *testing.T) {
	reset := l4test.Sys("read", syscall.ECONNRESET)
	mysql, postgres := "mysql", "postgres"
	for _, tt := range []struct {
		protocol string
		first    relay.Side
		reason   outcome.Reason
		want     outcome.Reason
		hint     string
	}{
		{mysql, relay.Downstream, outcome.UpstreamReset, outcome.Closed, ""},
		{mysql, relay.Upstream, outcome.UpstreamReset, outcome.UpstreamReset, ""},
		{mysql, relay.Downstream, outcome.UpstreamTLSRejected, outcome.UpstreamTLSRejected, ""},
		{postgres, relay.Downstream, outcome.UpstreamReset, outcome.UpstreamReset, "nothing is lost, unless it still waited"},
		{postgres, relay.Upstream, outcome.UpstreamReset, outcome.UpstreamReset, ""},
		{"", relay.Downstream, outcome.UpstreamReset, outcome.UpstreamReset, "nothing is lost, unless it still waited"},
	} {
		p, _ := starttls.Lookup(tt.protocol)
		reason, err := AfterClient(p, tt.reason, reset, relay.Result{End: relay.EndUpstreamReset, FirstClose: tt.first, Err: reset})
		if _, hint := outcome.CauseAndFix(err); reason != tt.want || tt.hint == "" && hint != "" || !strings.Contains(hint, tt.hint) {
			t.Errorf("%q, %v first, %s: %s with %v; want %s with %q", tt.protocol, tt.first, tt.reason, reason, err, tt.want, tt.hint)
		}
	}
}
