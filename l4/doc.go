// Package l4 is the path of a connection: it accepts, decides where to, dials,
// originates TLS, and hands both ends to the relay. It owns every socket.
//
// A Server is given a Config by Apply, again on every reload. Each accepted
// connection is a session; (*session).run is its life, in order, and session.go
// tells it without another file. Beside it: listener.go binds and accepts,
// greet.go is what comes before a dial (memory.go bounds it; silence.go is where
// clients are waited for that have to speak; l4/preface reads what they say, request.go
// answers, original_linux.go knows where redirected ones wanted to go, l4/htpasswd checks
// passwords), choose.go asks the rules (destination.go judges
// addresses, dynamic.go keeps what is known of destinations), upstream.go makes
// connections (resolve.go says where to, plan.go in which order, address.go keeps
// what is known of each address; dial.go, originate.go),
// limits.go counts, classify.go names every ending, observe.go accounts for it,
// drain.go stops, status.go tells. Apart from sessions, prober.go asks how
// addresses are, health.go judges, and preconnect.go keeps connections ready.
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
