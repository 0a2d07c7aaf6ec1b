// Ambassador makes the network connections of an application that cannot be
// changed: the application speaks plain TCP to it, and it opens the connection
// with mutual TLS, after STARTTLS where the protocol wants it.
//
// This package is the binary: flags, the configuration file (config.go and what
// it names), the admin API and metrics, and the life of the process (run.go). It
// is the only one that knows all the others. Only main exits.
package main
