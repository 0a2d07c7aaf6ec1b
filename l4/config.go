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

// Config is everything a Server serves. It is complete, already validated by
// whoever built it, and not changed after it has been handed to Apply.
type Config struct {
	Listeners []ListenerConfig
	Upstreams []UpstreamConfig
	// MaxSessions bounds the sessions of the whole process. If zero, it is 45 %
	// of the descriptor limit, or less where the rest would not do for everything
	// else: a session needs two descriptors.
	MaxSessions int
	// MaxMemory bounds the bytes that are held for sessions which are not relayed
	// yet, and for sides of relayed ones that do not take what was sent to them. If
	// zero, DefaultMemory.
	MaxMemory int64
	// ReservedDescriptors is how many descriptors the rest of the process may have
	// open at a time: HTTP servers, files, issuers.
	ReservedDescriptors int
}

// ListenerConfig is one place where downstreams connect.
type ListenerConfig struct {
	Name string
	// Greeting is the text of everything that decides how clients are greeted, but for
	// Users: TLS, ProxyFrom, Request and the like. A client that was greeted by another
	// text before Apply, and is not routed yet, is refused: it may not have proved what is
	// wanted now.
	Greeting string
	// Address is "HOST:PORT", "unix:/path" or "systemd:NAME".
	Address string
	Socket  SocketConfig
	// UnsafePlaintextListen allows plaintext on an address that is not loopback.
	UnsafePlaintextListen bool
	// ProxyFrom are the proxies before us. If there are any, only they may connect,
	// and must begin with a PROXY header that says who the client is.
	ProxyFrom []netip.Prefix
	// TLS ends the TLS of clients. Nil: they speak plaintext.
	TLS *ServerTLS
	// StartTLS names a protocol of l4/starttls in which clients ask us for TLS, one
	// of AcceptNames; empty: TLS begins at once. It needs TLS.
	StartTLS string
	// Request is how clients say where they want to go.
	Request RequestProtocol
	// Users may ask, by name and password. Nil: everybody may, and nobody is asked.
	Users *htpasswd.Users
	// SNI reads the ClientHello of clients, for Rules. It cannot be with TLS, nor with
	// a Request that is answered: the hello comes only after the answer.
	SNI bool
	// Context lets clients say more about their connection; see preface.Hints.
	Context bool
	// Upstream is the Name of one of Config.Upstreams. Empty where Rules choose.
	Upstream string
	// Rules choose an upstream by its Name, or deny. Nil: Upstream.
	Rules *policy.Rules
	// DNSServers ("10.0.0.2:53") answer for the names that Rules are about. Empty: the system's.
	DNSServers []string
	Timeouts   Timeouts
	Limits     ListenerLimits
}

// RequestProtocol is how clients of a listener say where they want to go.
type RequestProtocol int

// The ways. With RequestOriginal it is where the connection went before the
// system redirected it to us (Linux, nftables REDIRECT).
const (
	RequestNone RequestProtocol = iota
	RequestSOCKS5
	RequestConnect
	RequestOriginal
)

// upstreams are those that sessions may go to.
func (c *ListenerConfig) upstreams() []string {
	if c.Rules == nil {
		return []string{c.Upstream}
	}
	return c.Rules.Upstreams()
}

// proxied says whether clients come by proxies that tell of them.
func (c *ListenerConfig) proxied() bool { return len(c.ProxyFrom) > 0 }

// speaksFirst says whether clients have to say something before anything is dialled
// for them.
func (c *ListenerConfig) speaksFirst() bool {
	return c.TLS != nil || c.proxied() || c.Request == RequestSOCKS5 || c.Request == RequestConnect
}

// SocketConfig says what a unix listener's file looks like.
type SocketConfig struct {
	// Mode is the file's permission bits. If zero, 0600.
	Mode fs.FileMode
	// UID and GID own the file. Nil leaves them as they are.
	UID, GID *int
}

// Timeouts bound what a session may wait for. Zero is none, but for Handshake,
// where it is DefaultHandshakeTimeout: a wait for the client always has a bound.
type Timeouts struct {
	// Handshake bounds every wait for the client's part before the relay.
	Handshake time.Duration
	// Idle ends a session that moved no byte either way for so long.
	Idle time.Duration
	// HalfCloseIdle is Idle for a session of which one side has ended.
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
	// Key is the text of everything that makes this upstream what it is. On
	// Apply an upstream of the same Name and Key is kept with all it has learned.
	Key       string
	Endpoints []EndpointConfig
	// Dynamic has no Endpoints: it dials what the client has asked for.
	Dynamic bool
	// StartTLS names a protocol of l4/starttls; empty for none.
	StartTLS string
	// ProxyProtocol is the version of the PROXY header that connections begin with,
	// before StartTLS and TLS. Ready ones, which Preconnect makes, cannot have one.
	ProxyProtocol ProxyVersion
	// TLS gives the configuration for a connection to address ("10.0.0.7:5432")
	// of the endpoint configured as host. Nil: the upstream speaks plaintext. An
	// error means that our side is not ready (outcome.NoIdentity).
	TLS func(host, address string) (*tls.Config, error)
	// IdentityReady says why the identity cannot be used now. Nil: none is needed.
	IdentityReady func() error
	// AwaitIdentity is asked where IdentityReady says no: it waits for what will
	// come at once, bounded by ctx. Nil: nothing will.
	AwaitIdentity func(ctx context.Context) error
	Connect       ConnectConfig
	// DNSServers ("10.0.0.2:53") answer for this upstream's names. Empty: the system's.
	DNSServers []string
	// Required upstreams count for readiness.
	Required bool
	// Balance is how an address is chosen among those that may be used.
	Balance policy.Method
	// Resolve is how often names are looked up again. If zero, DefaultResolve.
	Resolve time.Duration
	// Breaker is that of each address. If zero, none ever opens.
	Breaker policy.BreakerConfig
	// Health is how the health of each address is told.
	Health HealthConfig
	// Preconnect is how many connections are kept ready.
	Preconnect PreconnectConfig
	// MaxConnections bounds the connections to each address, ready ones included. If zero, nothing does.
	MaxConnections int
	// Mark is the SO_MARK of all that is dialled by IP, probes and ready connections
	// included; names are looked up without. It needs Linux and CAP_NET_ADMIN. If
	// zero, none.
	Mark int
}

// EndpointConfig is one configured line of an upstream.
type EndpointConfig struct {
	// Address is "HOST:PORT" (a name or an IP), "unix:/path", or "srv:NAME" for the
	// targets of an SRV name.
	Address string
	// Weight is its share of the sessions. If zero, one. With srv the records say.
	Weight int
	// Priority is its group: a higher one is used only when no address of a lower
	// one can be. With srv the records say.
	Priority int
}

// ConnectConfig bounds establishing a connection. If zero, a field is its default.
type ConnectConfig struct {
	// Timeout bounds everything from the first attempt to the end of TLS.
	Timeout time.Duration
	// AttemptTimeout bounds one attempt: dial, STARTTLS and TLS to one address. If
	// zero, DefaultAttemptTimeout while there is another address to try, else only
	// Timeout does.
	AttemptTimeout time.Duration
	// Attempts is how often one session tries, each time another address first.
	Attempts int
	// Backoff is the pause before an address is tried again; it grows and has jitter.
	Backoff time.Duration
}
