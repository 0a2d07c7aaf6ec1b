package ending

import (
	"context"
	"strings"
	"testing"

	"ambassador/l4/outcome"
	"ambassador/l4/starttls"
)

// A server that waits in silence for the client may speak no TLS at all. After a dialogue it
// has TLS, and the size of our hello is what is left.
func TestAdviceForSilence(t *testing.T) {
	for _, c := range []struct {
		p        *starttls.Protocol
		received int
		want     string // empty: no advice
	}{
		{nil, 0, "if it speaks no TLS on this port, remove tls (forward: --plain); if its protocol begins in plaintext, set starttls"},
		{&starttls.Protocol{}, 0, "some firewalls and old servers drop a hello"},
		{nil, 1, ""},
	} {
		err := Explain(c.p, 8080, outcome.StageTLS, outcome.Timeout, &HandshakeError{Err: context.DeadlineExceeded, Hello: 1700, Received: c.received})
		_, fix := outcome.CauseAndFix(err)
		if !strings.Contains(fix, c.want) || c.want == "" && fix != "" {
			t.Errorf("dialogue %v, %d bytes: %q, want %q", c.p != nil, c.received, fix, c.want)
		}
	}
}
