// Ambassador makes the network connections of an application that cannot be
// changed: the application speaks plain TCP to it, and it opens the connection
// with mutual TLS, after STARTTLS where the protocol wants it.
//
// This package is the binary: flags, the configuration file (config.go and what
// it names), the admin API and metrics (admin.go, metrics.go), the commands that
// speak to a running one (client.go), and the life of the process (run.go). It
// is the only one that knows all the others. Only main exits.
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
//   - That a log line is written where nobody reads standard error.
package main
