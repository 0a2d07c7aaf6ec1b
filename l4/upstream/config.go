package upstream

import (
	"context"
	"crypto/tls"
	"time"

	"ambassador/l4/lookup"
	"ambassador/l4/starttls"
	"ambassador/l4/tlscause"
	"ambassador/policy"
)

// Config is one named remote service.
type Config struct {
	Name string
	// Key is the text of all settings of this upstream. Apply keeps an upstream of the
	// same Name and Key, with its state.
	Key string
	// StateKey is the text of the settings that health and breakers follow from. If it is
	// the same after a reload, an endpoint that stays keeps its state. Empty: none does.
	StateKey  string
	Endpoints []EndpointConfig
	// Dynamic dials the destination that the client asks for. It has no Endpoints.
	Dynamic bool
	// StartTLS names a protocol of l4/starttls; empty for none. StartTLSOptions are its
	// options.
	StartTLS        string
	StartTLSOptions starttls.Options
	// StartTLSTimeout bounds the part of an attempt between the dial and TLS: the PROXY
	// header and STARTTLS. If zero, Connect.AttemptTimeout includes it. If not, AttemptTimeout
	// bounds what is before it, and TLS after it once more.
	StartTLSTimeout time.Duration
	// ProxyProtocol is the version of the PROXY header that connections begin with,
	// before StartTLS and TLS. Preconnected connections cannot have one.
	ProxyProtocol ProxyVersion
	// TLS returns the configuration for a connection to address ("10.0.0.7:5432") of the
	// endpoint configured as host. Nil: the upstream speaks plaintext. An error means that
	// our side is not ready (outcome.NoIdentity).
	TLS func(host, address string) (*tls.Config, error)
	// Fault says what is wrong with the certificate that TLS sends. It may be nil.
	Fault tlscause.Fault
	// HoldHalfClose passes the client's FIN on only when the server has ended, too, or has
	// sent nothing for holdFor. It needs TLS.
	HoldHalfClose bool
	// IdentityReady returns why the identity cannot be used now. Nil: none is needed.
	IdentityReady func() error
	// AwaitIdentity is called if IdentityReady returns an error: it waits for an identity
	// that is expected at once, bounded by ctx. Nil: none is expected.
	AwaitIdentity func(ctx context.Context) error
	Connect       ConnectConfig
	// DNSServers ("10.0.0.2:53") look up this upstream's names. Empty: the system's do.
	DNSServers []string
	// Required upstreams count for readiness.
	Required bool
	// Balance is how an address is chosen among the usable ones.
	Balance policy.Method
	// Resolve is how often names are looked up again. If zero, DefaultResolve.
	Resolve time.Duration
	// KeepGone is how long the addresses of a name stay after the name servers said that
	// it does not exist any more. If zero, DefaultKeepGone; if negative, not at all.
	KeepGone time.Duration
	// Breaker configures the breaker of each address. If zero, no breaker opens.
	Breaker policy.BreakerConfig
	// Health is how the health of each address is checked.
	Health HealthConfig
	// Preconnect is how many preconnected connections are kept.
	Preconnect PreconnectConfig
	// MaxConnections bounds the connections to each address, preconnected ones included.
	// If zero, there is no bound.
	MaxConnections int
	// Mark is the SO_MARK of all connections by IP, probes and preconnected ones included;
	// lookups do not have it. It needs Linux and CAP_NET_ADMIN. If zero, none.
	Mark int
}

// EndpointConfig is one configured line of an upstream.
type EndpointConfig struct {
	// Address is "HOST:PORT" (a name or an IP), "unix:/path", or "srv:NAME" for the
	// targets of an SRV name.
	Address string
	// Weight is its share of the sessions. If zero, one. With srv the records set it.
	Weight int
	// Priority is its group: a group with a higher number is used only if no address of a
	// lower one is usable. With srv the records set it.
	Priority int
	// Discovery pushes the addresses; Address is only a name then. If nil, Address is
	// looked up.
	Discovery *lookup.Discovery
}

// IsLiteral reports whether the endpoint needs no lookup.
func (e *EndpointConfig) IsLiteral() bool {
	_, _, ok := lookup.Literal(e.Address)
	return ok
}

// ConnectConfig bounds how a session connects to an upstream. A field that is zero has
// its default.
type ConnectConfig struct {
	// Timeout bounds everything from the first attempt to the end of TLS.
	Timeout time.Duration
	// AttemptTimeout bounds one attempt: dial, STARTTLS and TLS to one address. If zero,
	// DefaultAttemptTimeout bounds it while there is another address to try, else only
	// Timeout does.
	AttemptTimeout time.Duration
	// Attempts is how many attempts a session makes at least before it gives up. It tries
	// other addresses before it repeats one, and, while Timeout lasts, every address once:
	// of a dynamic destination the first 16.
	Attempts int
	// Backoff is the pause before an address is tried again. It grows and has jitter.
	Backoff time.Duration
}

// ProxyVersion is a version of the PROXY protocol. If zero, no header is sent.
type ProxyVersion byte

// The versions: 1 is a line of text, 2 a binary header that can describe TLS.
const (
	ProxyV1 ProxyVersion = 1
	ProxyV2 ProxyVersion = 2
)

// Defaults of the fields of an upstream's configuration that are zero.
const (
	DefaultConnectTimeout = 10 * time.Second
	DefaultAttemptTimeout = 3 * time.Second
	DefaultAttempts       = 3
	DefaultBackoff        = 100 * time.Millisecond
	DefaultResolve        = 30 * time.Second
	DefaultKeepGone       = 30 * time.Second
	DefaultHealthTimeout  = 2 * time.Second
	DefaultPreconnectAge  = 20 * time.Second
)
