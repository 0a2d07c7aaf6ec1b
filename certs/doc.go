// Package certs holds our identities and verifies those of our peers.
//
// A Source holds the current generation of one identity. An issuer feeds it: one
// that pushes (package files watches files, package spiffe an agent), or one that
// a Renewer asks in time (package step). An Originator turns a ClientPolicy, which
// names a Source, into TLS configurations for connections that we open; a
// Terminator does the same with a ServerPolicy for connections that we accept.
//
// # Promised
//
//   - A generation is published whole: certificate, key and roots never mix.
//   - A certificate that has expired, or is not valid yet, is never offered.
//   - An old certificate is used as long as it is valid, whatever its issuer does.
//   - An issuer has one request at a time, and every wait for it is bounded.
//   - Every connection is verified, a resumed one by the same rules as a new one:
//     chain, revocation lists, then name or principals.
//   - Below the roots that an identity brings with revocation lists, a certificate is
//     accepted only if the newest usable list of its CA does not contain it.
//   - A session is resumed only with the address, the policy and the generation
//     of its first connection.
//   - Keys of session tickets are never older than 12 hours, nor than the generation.
//   - The roots of a SPIFFE trust domain vouch only for that domain's IDs, if the
//     issuer keeps domains apart.
//   - A panic of an issuer is a failure of that identity, not the end of the process.
//   - The common name (CN) of a certificate is never read.
//
// # Not promised
//
// Revocation is checked with complete lists from files. There is no OCSP, no
// download from distribution points, and no support for delta and indirect lists.
// An intermediate CA whose own CA has no list is accepted. Below other roots than
// the identity's, any CA without a list is accepted. Without Roots.Domains all roots
// of a policy vouch for all names. A live connection is not verified again when
// certificates change.
package certs
