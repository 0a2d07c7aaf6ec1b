// Package certs proves who we are and decides whom we trust.
//
// A Source holds the current generation of one identity. What feeds it is an
// issuer: one that comes by itself (package files watches files, package spiffe
// an agent), or one that a Renewer asks in time (package step). An Originator
// turns a ClientPolicy, which names a Source, into TLS configurations for
// connections that we begin; a Terminator does it with a ServerPolicy, for those
// that others begin with us.
//
// # Promised
//
//   - A generation is published whole: certificate, key and roots never mix.
//   - A certificate that has expired, or is not valid yet, is never offered.
//   - An old certificate is used as long as it is valid, whatever its issuer does.
//   - An issuer is asked once at a time, and who waits for that has a bound.
//   - Every connection is judged, a resumed one by the same rules as a new one:
//     chain, revocation lists, then name or principals.
//   - Below the roots that an identity brings with revocation lists, a certificate is
//     accepted only if the newest list of its CA that can be used does not have it.
//   - A session is resumed only with the address, the policy and the generation
//     that it was begun with.
//   - Keys of session tickets are never older than 12 hours, nor than the generation.
//   - The roots of a SPIFFE trust domain vouch for that domain's IDs alone, where
//     the issuer tells domains apart.
//   - A panic of an issuer is a failure of that identity, not the end of the process.
//   - The common name (CN) of a certificate is never read.
//
// # Not promised
//
// Revocation is known from complete lists in files; nobody is asked (OCSP,
// distribution points), and delta and indirect lists are not used. An intermediate CA
// whose own CA has no list is accepted, and so is, below other roots than the
// identity's, any CA without one. Without Roots.Domains all roots of a policy vouch
// for all names. A connection that lives on is not judged again when certificates
// change.
package certs
