// Package relay moves the bytes of sessions. A session is a pair of connections,
// each plain or TLS; bytes read from one are written to the other, until both
// have ended.
//
// Start takes both connections over and returns at once. The caller needs no
// goroutine: Config.Owner is called at the end. Meanwhile the caller may read the
// counts and stop the session.
//
// # How it works
//
// On Linux, if both ends are sockets, a session is a flow: it leaves Go's poller
// and belongs to a loop, which is a goroutine and an epoll descriptor. There are
// at most as many loops as processors. A quiet session costs two descriptors and
// some 320 bytes: no goroutine, no buffer, no timer. An event is only a hint: the
// flow tries what can be done, with calls that cannot block, under its lock and
// in the loop's memory.
//
//	small    one recv, one send; a short read means that there is no more
//	bulk     a read that fills the buffer makes the direction a bulk flow: splice
//	         through a pipe, which the flow keeps only while it holds bytes
//	TLS      crypto/tls, fed from one large read and writing into one buffer
//	         (Transport): many records by one call, either way
//	blocked  bytes that a side does not accept are kept (at most a pipe, or the result
//	         of one read: under 1 MiB), and the source is not read until they are sent
//	limits   a heap of deadlines and one timer per loop; a session without limits is
//	         checked once, a second after its start
//	load     one loop serves a little work; another joins when it works for much of its
//	         time, because events then wait for one another. A session stays with the
//	         loop that accepted it, until that loop has much more work than another (load)
//	waits    a busy loop waits for events directly, unknown to Go's
//	         scheduler, whose monitor thread would wake every 20 µs (directWait)
//	fairness one event moves at most 1 MiB of plain bytes or 256 KiB of TLS; a flow
//	         that moves much waits for the others (BenchmarkFairness)
//
// The setup is as short: with Listen the loops accept connections. Sockets of
// DialMarked enter Go's poller only if somebody has to wait for them for long before the
// relay: a loop can wait for the first bytes, and for what a handshake needs next
// (Socket). A loop computes the steps of handshakes one at a time, between its events
// (load.Steps); it sends those that are too many, or take long, to goroutines.
//
// On other systems, for connections that are not sockets, and where a TLS peer may
// renegotiate, the portable implementation has two goroutines per session. It is the reference: every
// behaviour is tested on both. AMBASSADOR_TEST_RELAY=portable, for tests, selects
// it always.
//
// # Ownership
//
//	connections   the session's, from Start to Done; nobody else may use them
//	descriptors   the flow's own, or dups of Go's, which are closed at Start. They are
//	              closed once, under the flow's lock, after they were removed from
//	              the table of event receivers: a late event finds no receiver, or a
//	              new one, for which a spurious event is harmless
//	pipes         the loop's that made them, or the flow's while they hold bytes
//	buffers       the loop's, lent for one event; held bytes are the flow's
//	goroutines    the engine's loops, which end with Close; two pumps per session of the
//	              portable implementation, which end before Done is called
//
// # Promised
//
//   - The bytes that a side sent arrive complete and in order, until its FIN, which is
//     passed on as FIN (TLS: close_notify, then FIN), or its RST, which is passed on as
//     RST. Bytes that a side sent before its RST still arrive.
//   - One direction may end long before the other.
//   - An ending that we decide is a RST on both sides, without close_notify. So is the
//     end of the process, by kill -9 too, for the sessions that loops run.
//   - Done is called once, never from within another call of this package, after both
//     connections are closed and the counts are final, and after Settled.
//   - If descriptors, pipes or memory run out, a session is relayed with the remaining
//     means.
//
// # Not promised
//
//   - Unix sockets have no RST: there it is a close.
//   - A connection without CloseWrite (net.Pipe) cannot end one direction: its peer sees
//     the end only when the session is over.
//   - Bytes in the kernel's send buffer at a reset are lost, as with any RST.
//   - Settled and Done run on a loop: while they wait, all sessions of the loop wait.
//   - The caller handles handshakes and everything else before Start.
package relay
