// Package l4 is the path of a connection: it accepts, decides where to, dials,
// originates TLS, and hands both ends to the relay. It owns every socket.
//
// A Server is given a Config by Apply, again on every reload. Each accepted
// connection is a session; session.go is its life, in order: start admits and parks it,
// and Run is the list of stages up to the relay. The client's side is in downstream.go.
//
// In the order of the stages: listener.go binds and accepts, and server.go makes the
// session; limits.go counts; parked.go has the sessions that wait for their client's
// first byte; greet.go is what precedes a dial
// (l4/preface reads what the client says, request.go answers, original_linux.go finds
// where a redirected client wanted to go, l4/htpasswd checks passwords, memory.go bounds
// what all that holds); choose.go asks the rules, destination.go judges addresses, and
// dynamic.go caches destinations; upstream.go makes connections: resolve.go looks up
// names, plan.go chooses an address, address.go has what is known of each, dial.go and
// originate.go connect. The file classify.go names every ending with the words of
// l4/outcome, and observe.go keeps the records of the last sessions; the Observer of the
// process writes the log. The file drain.go stops a server, and status.go reports. Apart
// from sessions, prober.go checks addresses, health.go judges them, and preconnect.go
// makes connections in advance. The package l4/task runs a session on an event loop until
// it has to wait.
//
// # Locks
//
// A goroutine that holds a lock takes only locks to the right of it:
//
//	Server.applying → Server.mu → session.mu → limiter.mu, parkedSessions.mu, memory.mu, and those of l4/relay
//	Upstream.gathering, visited.mu → endpoint.mu → address.mu → the breaker's
//	spares.mu → address.mu
//
// Those of turns, recent and ownDials stand alone. No lock is held during I/O or a wait.
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
