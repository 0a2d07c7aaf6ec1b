package l4

import (
	"net/netip"
	"time"

	"ambassador/l4/htpasswd"
	"ambassador/l4/limits"
	"ambassador/l4/unixsocket"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// Config is the configuration of a Server. The caller validates it before Apply, and
// does not change it afterwards.
type Config struct {
	Listeners []ListenerConfig
	Upstreams []upstream.Config
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
	Tracing             Tracing
}

// ListenerConfig is one or more addresses where clients connect.
type ListenerConfig struct {
	Name string
	// Greeting is the text of all settings that decide how clients are greeted, except
	// Users: TLS, ProxyFrom, Request and the like. If Apply changes the text, clients that
	// are greeted but not routed yet are refused: they may not have proved what the new
	// settings require.
	Greeting string
	// Addresses are where it listens, at least one. "HOST:PORT" is an IP address or a name;
	// 0.0.0.0 is IPv4 alone, and [::] is both families unless an IPv4 address with the same
	// port is configured. "localhost:PORT", or a port alone, is 127.0.0.1 and ::1, as far as
	// the host has them. "%INTERFACE:PORT" is every address that the network interface has
	// when Apply is called. "unix:/path" is a unix socket, "unix:@name" an abstract one of
	// Linux, and "systemd:NAME" a socket that systemd passed.
	Addresses []string
	Socket    unixsocket.Config
	// UnsafePlaintextListen allows plaintext on an address that is not loopback.
	UnsafePlaintextListen bool
	// ProxyFrom are the proxies before us. If there are any, only they may connect, and
	// must begin with a PROXY header that names the client, unless ProxyOptional.
	ProxyFrom []netip.Prefix
	// ProxyOptional lets the proxies in ProxyFrom send no header. A client that sends
	// nothing is served without one after Timeouts.Handshake.
	ProxyOptional bool
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
	// LogProcess looks up the process id and the name of clients on this host, for the
	// record.
	LogProcess bool
	// DNSServers ("10.0.0.2:53") look up names for Rules. Empty: the system's do.
	DNSServers []string
	Timeouts   Timeouts
	Limits     limits.Limits
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
	return c.TLS != nil || c.proxied() && !c.ProxyOptional || c.Request == RequestSOCKS5 || c.Request == RequestConnect
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

// DefaultHandshakeTimeout is Timeouts.Handshake if that is zero.
const DefaultHandshakeTimeout = 10 * time.Second
