// Package policy decides and never acts: it opens no socket, reads no clock and
// starts no goroutine. Whoever asks brings the time and the randomness, so that
// every decision can be tested as a table.
//
// In this version it holds the pause between attempts. Rules, breaker, health
// and limits join it.
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
