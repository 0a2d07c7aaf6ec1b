// Package policy decides and never acts: it opens no socket, reads no clock and
// starts no goroutine. Whoever asks brings the time and the randomness, so that
// every decision can be tested as a table.
//
// A Breaker says whether a destination may be tried, a HealthFold what a series
// of checks amounts to, a Balancer which address is next, a Backoff how long to
// wait, a Rate whether there were too many. Rules say where a connection may go,
// Special which addresses need a rule of their own, ParseHost what a client may call a
// host, and Source what counts as one client. Names are the field's: a breaker that is
// closed lets traffic pass.
//
// # Promised
//
// The same question gets the same answer; nothing here blocks.
//
// # Not promised
//
// Nothing here knows about sessions: a caller that asks and does not act on the
// answer is not noticed.
package policy
