package l4

import (
	"context"
	"crypto/tls"
	"io/fs"
	"net/netip"
	"time"

	"ambassador/l4/htpasswd"
	"ambassador/policy"
)

// Config is the configuration of a Server. The caller validates it before Apply, and
// does not change it afterwards.
type Config struct {
	Listeners []ListenerConfig
	Upstreams []UpstreamConfig
	// MaxSessions bounds the sessions of the whole process. If zero, it is 45 % of the
	// descriptor limit, or less if the rest would not be enough for everything else: a
	// session needs two descriptors.
	MaxSessions int
	// MaxMemory bounds the bytes that are held for sessions before their relay, and in
	// the relay for sides that do not read. If zero, DefaultMemory.
	MaxMemory int64
	// ReservedDescriptors is how many descriptors the rest of the process may have open
	// at a time: HTTP servers, files, issuers.
	ReservedDescriptors int
}

// ListenerConfig is one address where clients connect.
type ListenerConfig struct {
	Name string
	// Greeting is the text of all settings that decide how clients are greeted, except
	// Users: TLS, ProxyFrom, Request and the like. If Apply changes the text, clients that
	// are greeted but not routed yet are refused: they may not have proved what the new
	// settings require.
	Greeting string
	// Address is "HOST:PORT", "unix:/path" or "systemd:NAME".
	Address string
	Socket  SocketConfig
	// UnsafePlaintextListen allows plaintext on an address that is not loopback.
	UnsafePlaintextListen bool
	// ProxyFrom are the proxies before us. If there are any, only they may connect, and
	// must begin with a PROXY header that names the client.
	ProxyFrom []netip.Prefix
	// TLS terminates the TLS of clients. Nil: clients speak plaintext.
	TLS *ServerTLS
	// StartTLS names a protocol of l4/starttls in which clients ask us for TLS, one
	// of AcceptNames; empty: TLS begins at once. It needs TLS.
	StartTLS string
	// Request is how clients name their destination.
	Request RequestProtocol
	// Users may make requests, with name and password. Nil: every client may, and no login
	// is required.
	Users *htpasswd.Users
	// SNI peeks at the ClientHello of clients, for Rules. It excludes TLS, and a Request
	// that is answered: the client sends its ClientHello only after the answer.
	SNI bool
	// Context accepts client hints; see preface.Hints.
	Context bool
	// Upstream is the Name of one of Config.Upstreams. Empty if Rules choose.
	Upstream string
	// Rules choose an upstream by its Name, or deny the client. Nil: Upstream is used.
	Rules *policy.Rules
	// DNSServers ("10.0.0.2:53") look up names for Rules. Empty: the system's do.
	DNSServers []string
	Timeouts   Timeouts
	Limits     ListenerLimits
}

// RequestProtocol is how clients of a listener name their destination.
type RequestProtocol int

// The protocols. With RequestOriginal the destination is the connection's original one,
// before the system redirected it to us (Linux, nftables REDIRECT).
const (
	RequestNone RequestProtocol = iota
	RequestSOCKS5
	RequestConnect
	RequestOriginal
)

// upstreams returns the names of the upstreams that sessions may use.
func (c *ListenerConfig) upstreams() []string {
	if c.Rules == nil {
		return []string{c.Upstream}
	}
	return c.Rules.Upstreams()
}

// proxied reports whether clients connect through proxies, which send a PROXY header.
func (c *ListenerConfig) proxied() bool { return len(c.ProxyFrom) > 0 }

// speaksFirst reports whether clients have to send something before anything is dialled
// for them.
func (c *ListenerConfig) speaksFirst() bool {
	return c.TLS != nil || c.proxied() || c.Request == RequestSOCKS5 || c.Request == RequestConnect
}

// SocketConfig says which mode and owner the file of a unix listener has.
type SocketConfig struct {
	// Mode is the file's permission bits. If zero, 0600.
	Mode fs.FileMode
	// UID and GID own the file. Nil leaves the owner or the group as it is.
	UID, GID *int
}

// Timeouts bound the waits of a session. Zero is no bound, except for Handshake, where
// it is DefaultHandshakeTimeout: before the relay, every wait for the client has a bound.
type Timeouts struct {
	// Handshake bounds every wait for the client before the relay.
	Handshake time.Duration
	// Idle ends a session that has moved no byte in either direction for so long.
	Idle time.Duration
	// HalfCloseIdle is Idle for a session after one side has ended.
	HalfCloseIdle time.Duration
	// Lifetime bounds the relay as a whole.
	Lifetime time.Duration
}

// Defaults of the fields that are zero.
const (
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultConnectTimeout   = 10 * time.Second
	DefaultAttemptTimeout   = 3 * time.Second
	DefaultAttempts         = 3
	DefaultBackoff          = 100 * time.Millisecond
	DefaultResolve          = 30 * time.Second
	DefaultHealthTimeout    = 2 * time.Second
	DefaultPreconnectAge    = 20 * time.Second
)

// UpstreamConfig is one named remote service.
type UpstreamConfig struct {
	Name string
	// Key is the text of all settings of this upstream. Apply keeps an upstream of the
	// same Name and Key, with its state.
	Key       string
	Endpoints []EndpointConfig
	// Dynamic dials the destination that the client asks for. It has no Endpoints.
	Dynamic bool
	// StartTLS names a protocol of l4/starttls; empty for none.
	StartTLS string
	// ProxyProtocol is the version of the PROXY header that connections begin with,
	// before StartTLS and TLS. Preconnected connections cannot have one.
	ProxyProtocol ProxyVersion
	// TLS returns the configuration for a connection to address ("10.0.0.7:5432") of the
	// endpoint configured as host. Nil: the upstream speaks plaintext. An error means that
	// our side is not ready (outcome.NoIdentity).
	TLS func(host, address string) (*tls.Config, error)
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
	// Attempts is how many attempts a session makes. It tries other addresses before it
	// repeats one.
	Attempts int
	// Backoff is the pause before an address is tried again. It grows and has jitter.
	Backoff time.Duration
}
