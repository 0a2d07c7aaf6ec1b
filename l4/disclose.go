package l4

import (
	"errors"
	"fmt"
	"net"
	"time"
)

// forClient is what a client may read of a failure: the reason, the words of rules
// and limits, the name of the upstream, and of a destination that it may reach what
// happened there. It has no address that a name resolves to if the client may not
// reach that, none that another client's session has met, and not that of our name
// server. The record and the log have all of it.
func (s *session) forClient(e *Error) *Error {
	told := *e
	var (
		closed *closedError
		dns    *net.DNSError
		none   *refusal
	)
	switch {
	case errors.As(e.Err, &closed) && closed.public != "":
		told.Err = errors.New(closed.public)
	case errors.As(e.Err, &dns):
		told.Err = publicLookup(dns)
	case errors.As(e.Err, &none) && s.upstream != nil && s.upstream.visited != nil:
		told.Err = errors.New(none.public())
	default:
		return e
	}
	return &told
}

// publicLookup is a failed look-up without the addresses of the name server, and of
// ours, which the words of net.DNSError have.
func publicLookup(e *net.DNSError) error {
	switch {
	case e.IsNotFound:
		return fmt.Errorf("lookup %s: no such host", e.Name)
	case e.IsTimeout:
		return fmt.Errorf("lookup %s: no answer in time", e.Name)
	}
	return fmt.Errorf("lookup %s: the name server failed", e.Name)
}

// public is a refusal without the addresses, and their failures, that sessions of
// other listeners may have met, whose rules may allow more.
func (r *refusal) public() string {
	switch r.reason {
	case ReasonBreakerOpen:
		return fmt.Sprintf("the circuit breaker is open; next attempt in %v", r.retryIn.Round(time.Millisecond))
	case ReasonLimit:
		return r.limit + " is reached"
	}
	return "no address can be used"
}
