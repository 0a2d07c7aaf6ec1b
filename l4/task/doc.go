// Package task runs work that rarely waits on the goroutine that starts it, such as
// an event loop's, and moves the work to a goroutine of its own before it waits.
//
// A session that forwards to an address of this host does not wait at all: it begins
// and reaches the relay on the loop's thread, and waking another thread would cost more
// than all of its work. A session that waits for its client's request is suspended,
// and holds no goroutine. So is one that reads from a relay.Socket, or dials, for some
// milliseconds: a TLS handshake with a near peer stays on the loop's thread. Every other
// wait goes through a call that leaves the loop first: Wait and Go of this package, a
// longer read or dial, a write that waits, a lookup. Leave is for work that computes for
// long, such as a password's bcrypt.
//
// # Promised
//
// A task that has left does not run on a loop again. The functions work without a task,
// too: where ctx has none, Leave does nothing, and what OnLeave was given is called at
// once.
//
// # Not promised
//
// Until a task has left, its functions may be called on the task's own goroutine only:
// Go starts another goroutine safely. Nothing notices a call that waits without leaving;
// a test of package l4 looks for those, and another measures how long a loop stood still.
package task
