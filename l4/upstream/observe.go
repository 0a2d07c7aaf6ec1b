package upstream

import (
	"time"

	"ambassador/l4/outcome"
)

// Phase is a part of establishing a connection that is timed separately.
type Phase string

// The phases of one connection to an upstream.
const (
	PhaseDNS      Phase = "dns"
	PhaseDial     Phase = "dial"
	PhaseProxy    Phase = "proxy"
	PhaseStartTLS Phase = "starttls"
	PhaseTLS      Phase = "tls"
	PhaseTotal    Phase = "total"
)

// Observer receives the events of the attempts to reach upstreams. A nil field is
// not called. Its functions are called from many goroutines and must not block.
type Observer struct {
	// Attempt is called when an attempt to reach the upstream has settled; outcome.OK
	// is success.
	Attempt func(name string, reason outcome.Reason)
	// Phase is called after a phase that succeeded, with its duration and the ID of the
	// session, which is empty if a lookup or a preconnected connection serves several.
	Phase func(name, session string, phase Phase, d time.Duration)
	// Preconnect is called when a session asks an upstream that has preconnected
	// connections for one, with the result.
	Preconnect func(name string, result PreconnectResult)
	// Probe is called when a health probe has settled. A probe that our own side
	// prevented is none.
	Probe func(name string, ok bool)
	// Certificate is called after a TLS handshake with a server of an upstream that is
	// not dynamic, with the end of the server certificate's validity.
	Certificate func(name string, notAfter time.Time)
}
