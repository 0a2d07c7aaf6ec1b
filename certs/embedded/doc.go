// Package embedded is a certificate authority inside the process, smallstep's:
// for the demo, for tests, and later for `ambassador ca`. It is the only
// importer of smallstep's packages; none of their types leave it.
//
// # Promised
//
// Everything is in memory and gone with the process. Certificates are signed by
// the authority, with its checks, never beside it.
//
// # Not promised
//
// The root lives for a day. Nothing is revoked. Importing the package registers
// flags on flag.CommandLine and handlers on http.DefaultServeMux, which the
// product uses neither of.
package embedded
