// Package relay moves the bytes of sessions: two connections, each plain or
// TLS, what is read from one is written to the other, until both have ended.
//
// Start takes both connections over and returns at once. The caller keeps no
// goroutine; it is told of the end by Config.Done, and may meanwhile read the
// counts and stop the session.
//
// # How it works
//
// On Linux, where both ends are sockets, a session is a flow: it leaves Go's
// poller and belongs to one of at most as many loops as there are processors, each
// a goroutine and an epoll descriptor. A quiet session is two descriptors and some
// 400 bytes: no goroutine, no buffer, no timer. An event is a hint; what there is
// to do is found out by doing it, with calls that cannot block, under the flow's
// lock and in the loop's memory.
//
//	small    one recv, one send; a short read means that there is no more
//	bulk     a read that fills the buffer makes the direction a bulk flow: splice
//	         through a pipe that is the flow's only while it holds bytes
//	TLS      crypto/tls, fed from one large read and writing into one buffer
//	         (Transport): many records by one call, either way
//	blocked  what a side does not take is kept (at most a pipe, or what one read
//	         gave: under 1 MiB), and its source is not read until it is gone
//	limits   a heap of moments and one timer a loop; a session without limits is
//	         looked at once, a second after its start
//	load     as many loops are in use as there is work for: one full loop costs less
//	         than two half idle ones. A session stays with the loop that has
//	         accepted it, until that one has much more to do than another (load)
//	fairness one event moves at most 1 MiB of plain bytes or 256 KiB of TLS's; a flow
//	         that moves much waits for those that do not (BenchmarkFairness)
//
// The way to the relay is kept as short: Listen makes the loops accept, Dial makes
// sockets that enter Go's poller only if somebody has to wait for them before the
// relay, and for the first bytes a loop can wait (Socket).
//
// Elsewhere, and for what is no socket, the portable implementation has two
// goroutines a session. It is the reference: every behaviour is tested on both.
// AMBASSADOR_TEST_RELAY=portable, for tests, makes it the only one.
//
// # Who owns what
//
//	connections   the session, from Start to Done; nobody else may touch them
//	descriptors   a flow's own, or dups of Go's, which are closed at Start. They are
//	              closed once, under the flow's lock, after the table of who waits
//	              for events has forgotten them: an event that comes too late finds
//	              nobody, or a new owner whom a needless look does no harm
//	pipes         the loop that made them, or the flow while they hold bytes
//	buffers       the loop's, lent for one event; what is held is the flow's
//	goroutines    the engine's loops, which end with Close; two pumps for a session of
//	              the portable implementation, which end before Done is called
//
// # Promised
//
//   - What a side sent arrives whole and in order, until its FIN, which is passed
//     on as FIN (TLS: close_notify, then FIN), or its RST, which is passed on as
//     RST. Bytes that a side sent before its RST still arrive.
//   - One direction may end long before the other.
//   - An ending that we decide is a RST on both sides, without close_notify.
//   - Done is called once, never from within another call of this package, after
//     both connections are closed and the counts are final, and after Settled.
//   - Where descriptors, pipes or memory run out, a session is relayed by the means
//     that are left.
//
// # Not promised
//
//   - Unix sockets have no RST: there it is a close.
//   - A connection without CloseWrite (net.Pipe) cannot end one direction: its
//     peer sees the end only when the session is over.
//   - What is in the kernel's send buffer when we reset is lost, as with any RST.
//   - Settled and Done run on a loop: what they wait for, all its sessions wait for.
//   - Handshakes, and whatever else happens before Start, are the caller's.
package relay
