// Package l4 is the path of a connection: it accepts, decides where to, dials,
// originates TLS, and hands both ends to the relay. It owns every socket.
//
// A Server is given a Config by Apply, again on every reload. Each accepted
// connection is a session; session.go is its life, in order: start admits it, and parks it if the client has to speak first,
// and Run is the list of stages up to the relay. The client's side is in downstream.go.
//
// In the order of the stages: bind.go decides which sockets a listener has (l4/bind
// says what its addresses mean, l4/unixsocket makes the unix sockets), listener.go
// accepts, and server.go makes the session; limits.go counts; parked.go has the
// sessions that wait for their client's first byte; greet.go is what precedes a dial
// (l4/preface reads what the client says, l4/request answers, l4/handshake bounds TLS, netconn.OriginalDestination finds
// where a redirected client wanted to go, l4/htpasswd checks passwords, memory.go
// bounds what all that holds); choose.go asks the rules, and l4/upstream connects, TLS
// with the server included. Then session.go runs the client's part of a STARTTLS dialogue,
// which may settle the attempt before the relay does. Package l4/ending names the endings with the words of
// l4/outcome, which keeps the last records; the Observer of the process writes the log.
// The file drain.go stops a server, and status.go reports. The package l4/task runs a
// session on an event loop until it has to wait, and l4/relay passes the bytes on.
//
// # Locks
//
// A goroutine that holds a lock takes only locks to the right of it:
//
//	Server.applying → Server.mu → session.mu → limits.Limiter.mu, limits.Deadlines.mu, memory.mu, Address.mu of l4/upstream, and those of l4/relay
//
// One exception: Server.Freeze keeps sessions where they are with a lock of l4/relay, and
// takes session.mu meanwhile; nothing else waits for that lock with session.mu held.
// Those of turns and of the recent records stand alone. Package l4/upstream calls
// Server.hasRoom and the Observer with the lock of its preconnected connections held, and
// holds no lock during other calls. No lock is held during I/O or a wait.
//
// # Promised
//
//   - Every accepted connection ends in exactly one Record, refused ones included.
//   - No byte of a client is sent to more than one connection: an attempt is
//     repeated only before the first.
//   - An attempt never waits for the client, and every wait has a bound.
//   - Endings that the ambassador decides are resets; a FIN is the peer's.
//   - Errors are named by their type and number, never by their text.
//   - Each attempt is settled once, and what is ours or the client's speaks for
//     nobody. An address is never locked out for good: where none may be used, the
//     one whose trial is due gets it.
//
// # Not promised
//
//   - Connections waiting in a listening socket's queue when it closes are reset
//     by the kernel, without a record.
//   - A client that resets while a connection is established is noticed after
//     20 ms at the earliest, and on unix sockets only by the relay.
package l4
