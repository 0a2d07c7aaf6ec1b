// Package embedded is a certificate authority inside the process, made of
// smallstep's packages: for the demo, for `ambassador ca`, and for tests. Only it
// and package step import smallstep's packages; none of their types leave it.
//
// # Promised
//
// The authority signs all certificates, after its checks. An authority of New is
// kept in memory. A Server with storage keeps its keys in files of mode 0600,
// encrypted if it has a password, and does not keep the root's key. It refuses a
// folder that others could have written to.
//
// # Not promised
//
// The root of New is valid for a day, that of a Server for ten years; neither is
// replaced. Importing the package registers flags on flag.CommandLine and
// handlers on http.DefaultServeMux; the product uses neither.
package embedded
