// Ambassador makes the network connections of an application that cannot be changed.
// The application speaks plain TCP to it, and it opens the connection with mutual TLS,
// after STARTTLS if the protocol requires that.
//
// This package is the binary: its flags, its table of commands, its exit codes, and the
// commands that make their configuration (forward, socks5, demo, ca), read a file (run,
// check), or print (schema, help). It is the only package that knows all the others. Only main exits.
//
// The packages below internal/, in the order of their imports, lowest first:
//
//   - output: writes text and JSON for people and programs, without control characters
//   - report: what rules with report would deny, and the rules that allow it
//   - program: streams, environment and exit codes, which main passes down
//   - api: the paths and JSON types of the admin API
//   - adminsocket: finds and binds the socket of the admin API
//   - config: the configuration: keys, checks, schema
//   - secrets: the certificates, users and passwords that the configuration names
//   - explain: what the rules decide about one connection
//   - logs, metrics: the log and the metrics of sessions
//   - admin: the server of the admin API
//   - cli: the commands that query a running process
//   - process: runs an ambassador: start, reload, drain
//
// deps_test.go lists every import that a package may have, and why.
//
// # Promised
//
//   - A configuration is applied completely or not at all, at start and at each reload.
//   - SIGTERM and SIGINT let sessions finish within drain.timeout, and the process ends
//     with exit code 0. A second signal ends it at once.
//   - COMMAND starts after every required upstream was reached, and its exit code
//     is ours. A signal that comes earlier is 128+N.
//   - Standard output has only the addresses, or COMMAND's output. With
//     `socks5 --report`, the report follows at the very end.
//
// # Not promised
//
//   - That COMMAND ends when we are killed: SIGKILL leaves it running.
//   - That a log line is written if standard error has no reader.
package main
