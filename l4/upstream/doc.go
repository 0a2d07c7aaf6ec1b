// Package upstream connects to one named remote service: it looks up its names, chooses
// an address, dials, starts TLS, and remembers how the attempts went.
//
// A server makes an Upstream with New, runs what Start returns, and calls ConnectFor for
// each session. The Conn that it gets is ready for the client's bytes, or for the rest of
// a STARTTLS dialogue. Each attempt is settled once: by ConnectFor if it fails, else by
// the session or the relay.
//
// The file upstream.go has the attempts: resolve.go looks up names by l4/lookup, and
// refresh.go does so again; plan.go chooses an address, address.go has what is known of
// each, dial.go connects, and originate.go starts TLS (and STARTTLS before it);
// handshake.go adapts TLS to what the server has shown, and explains its failures. For
// upstreams that dial what clients ask for, dynamic.go caches destinations, and l4/evicted
// keeps the breakers of evicted ones. Package l4/ending names the endings of attempts with
// the words of l4/outcome. Apart from sessions, prober.go checks addresses by
// l4/healthcheck, health.go judges them, and preconnect.go makes connections in advance.
// The file status.go reports.
//
// # Locks
//
// A goroutine that holds a lock takes only locks to the right of it:
//
//	Upstream.publishing, destinationCache.mu → endpoint.mu → Address.mu → the breaker's
//	preconnectedPool.mu → endpoint.mu, and the lock that Deps.HasRoom takes
//
// That of tlscause.Variants stands alone. No lock is held during I/O or a wait, nor during a call
// of a function in Deps, but for HasRoom and Observer, which may be called with
// preconnectedPool.mu held.
//
// # Promised
//
//   - No byte of a client is sent before ConnectFor has returned: an attempt is repeated
//     only before the first.
//   - An attempt never waits for the client, and every wait has a bound.
//   - Each attempt is settled once, and what is ours or the client's counts for no
//     address. An address is never locked out for good: where none may be used, the one
//     whose trial is due gets it.
//   - Errors are named by their type and number, never by their text.
package upstream
