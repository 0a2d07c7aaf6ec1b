// Package certs proves who we are and decides whom we trust.
//
// A Source holds the current generation of one identity, fed by one issuer
// (package files reads PEM from disk). An Originator turns a ClientPolicy, which
// names a Source, into TLS configurations for connections that we begin.
//
// # Promised
//
//   - A generation is published whole: certificate, key and roots never mix.
//   - A certificate that has expired, or is not valid yet, is never offered.
//   - Every connection is judged, a resumed one by the same rules as a new one:
//     chain, then name or principals.
//   - A session is resumed only with the address, the policy and the generation
//     that it was begun with.
//   - The common name (CN) of a certificate is never read.
//
// # Not promised
//
// Revocation is not looked at. Trust domains of SPIFFE identities are not kept
// apart: all roots of a policy vouch for all names. A connection that lives on is
// not judged again when certificates change.
package certs
