package l4

import (
	"errors"
	"fmt"
	"net"

	"ambassador/l4/outcome"
)

// forClient returns the part of a failure that the client may read: the reason, the
// text of rules and limits, the upstream's name, and what happened at a destination
// that the client may reach. It leaves out addresses of a name that the client may not
// reach, addresses that another client's session has tried, and the address of our name
// server. The record and the log have all of them.
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

// publicLookup returns a failed lookup without the addresses of the name server and of
// this host, which the text of net.DNSError includes.
func publicLookup(e *net.DNSError) error {
	switch {
	case e.IsNotFound:
		return fmt.Errorf("lookup %s: no such host", e.Name)
	case e.IsTimeout:
		return fmt.Errorf("lookup %s: no answer in time", e.Name)
	}
	return fmt.Errorf("lookup %s: the name server failed", e.Name)
}
