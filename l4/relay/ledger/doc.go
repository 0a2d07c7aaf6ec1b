// Package ledger decides how a session ends, from what its sides have done.
//
// Promised: the decision depends only on the calls and their order. Nothing here reads a
// clock, calls the system or starts a goroutine.
//
// Not promised: safety for concurrent use. The relay holds the session's lock.
package ledger
