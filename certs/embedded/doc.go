// Package embedded is a certificate authority inside the process, smallstep's:
// for the demo, for `ambassador ca`, and for tests. With package step it is the
// only importer of smallstep's packages; none of their types leave it.
//
// # Promised
//
// Certificates are signed by the authority, with its checks, never beside it. What
// New makes is in memory and gone with the process. A Server with storage keeps
// its keys in files of mode 0600, encrypted if it has a password for that, and the
// root's key nowhere; a folder that others could have written is refused.
//
// # Not promised
//
// New's root lives for a day, a Server's for ten years, and neither is replaced.
// Importing the package registers flags on flag.CommandLine and handlers on
// http.DefaultServeMux, which the product uses neither of.
package embedded
