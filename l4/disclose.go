package l4

import (
	"errors"
	"fmt"
	"net"

	"ambassador/l4/outcome"
)

// forClient is what a client may read of a failure: the reason, the words of rules and
// limits, the name of the upstream, and what happened at a destination that it may reach.
// It has no address of a name that the client may not reach, none that another client's
// session has tried, and not that of our name server. The record and the log have all.
func (*session) forClient(e *outcome.Error) *outcome.Error {
	told := *e
	var (
		refused *outcome.Refusal
		dns     *net.DNSError
	)
	switch {
	case errors.As(e.Err, &refused) && refused.Public != "":
		told.Err = errors.New(refused.Public)
	case errors.As(e.Err, &dns):
		told.Err = publicLookup(dns)
	default:
		return e
	}
	return &told
}

// publicLookup is a failed lookup without the addresses of the name server and of ours,
// which the text of net.DNSError has.
func publicLookup(e *net.DNSError) error {
	switch {
	case e.IsNotFound:
		return fmt.Errorf("lookup %s: no such host", e.Name)
	case e.IsTimeout:
		return fmt.Errorf("lookup %s: no answer in time", e.Name)
	}
	return fmt.Errorf("lookup %s: the name server failed", e.Name)
}
