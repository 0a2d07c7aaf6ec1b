// Ambassador makes the network connections of an application that cannot be
// changed: the application speaks plain TCP to it, and it opens the connection
// with mutual TLS, after STARTTLS where the protocol wants it.
//
// This package is the binary: its flags, its table of commands, its exit codes, and the
// commands that need no configuration file (forward, socks5, demo, ca). It is the only
// one that knows all the others. Only main exits.
//
// The rooms below internal/, from what everything needs to what needs everything:
//
//   - output: what people and programs read of us, without control characters
//   - program: streams, environment and exit codes, which main hands down
//   - api: the paths and JSON types of the admin API
//   - adminsocket: where the socket of the admin API is
//   - config: the configuration: keys, checks, schema
//   - secrets: the certificates, users and passwords that it names
//   - explain: what its rules decide about one connection
//   - logs, metrics: what is told of sessions
//   - admin: the server of the admin API
//   - cli: the commands that ask a running process
//   - process: the life of one: start, reload, drain
//
// deps_test.go has every import that a room may have, and why.
//
// # Promised
//
//   - A configuration is taken whole or not at all, at start and at each reload.
//   - SIGTERM and SIGINT let sessions finish within drain.timeout and end with
//     exit code 0; a second one ends at once.
//   - COMMAND starts after every required upstream was reached, and its exit code
//     is ours.
//   - Standard output carries the addresses, or COMMAND's output, and nothing else;
//     with `socks5 --report`, what that found at the very end.
//
// # Not promised
//
//   - That COMMAND ends when we are killed: SIGKILL leaves it running.
//   - That a log line is written where standard error has no reader.
package main
