// Package policy makes decisions and performs no actions: it opens no socket,
// reads no clock and starts no goroutine. The caller provides the time and the
// randomness, so that every decision can be tested as a table.
//
// A Breaker decides whether an address may be tried, a HealthFold which verdict
// follows from a series of checks, a Balancer which address is next, a Backoff
// how long to wait, a Rate whether there were too many events. Rules decide where
// a connection may go, Special which addresses need a rule of their own, ParseHost
// what a client may name as a host, and Source what counts as one client. The states
// of a circuit breaker have their usual names: a closed breaker lets traffic pass.
//
// # Promised
//
// The same question gets the same answer; nothing here blocks.
//
// # Not promised
//
// Nothing here knows about sessions: it is not noticed if a caller ignores a
// decision.
package policy
