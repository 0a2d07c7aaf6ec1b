// Package relay moves the bytes of sessions: two connections, each plain or
// TLS, what is read from one is written to the other, until both have ended.
//
// Start takes both connections over and returns at once. The caller keeps no
// goroutine; it is told of the end by Config.Done, and may meanwhile read the
// counts and stop the session.
//
// This is the portable implementation: two goroutines a session. A goroutine
// that waits for a plain connection holds no buffer. Where both ends are plain
// sockets on Linux, a bulk flow is spliced in the kernel.
//
// # Who owns what
//
//	connections   the Session, from Start to Done; nobody else may touch them
//	goroutines    two pumps, which end before Done is called
//	timer         one a session: settle, idle, half-close idle, lifetime
//	buffers       a pump's, from the pool, while it moves bytes
//
// # Promised
//
//   - What a side sent arrives whole and in order, until its FIN, which is passed
//     on as FIN (TLS: close_notify, then FIN), or its RST, which is passed on as
//     RST. Bytes that a side sent before its RST still arrive.
//   - One direction may end long before the other.
//   - An ending that we decide is a RST on both sides, without close_notify.
//   - Done is called once, never from within another call of this package, after
//     both connections are closed and the counts are final.
//
// # Not promised
//
//   - Unix sockets have no RST: there it is a close.
//   - A connection without CloseWrite (net.Pipe) cannot end one direction: its
//     peer sees the end only when the session is over.
//   - What is in the kernel's send buffer when we reset is lost, as with any RST.
package relay
