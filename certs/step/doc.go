// Package step is an issuer: it gets an identity from a step-ca, through
// smallstep's API client, and renews it.
//
// The first certificate is requested with a one-time token: from a file, or
// signed with the key of a JWK provisioner, which the CA keeps encrypted with a
// password. Later ones are requested over mutual TLS with the certificate in use,
// each for a new key (rekey). An expired certificate is renewed with a token
// signed by its key, if the provisioner allows that. If a renewal is refused, we
// enrol again.
//
// # Promised
//
//   - The CA is the one whose root has the fingerprint. Its later roots, and those of
//     its federation, are taken from the CA itself.
//   - Files in storage have mode 0600 and are replaced whole, so that a process that is
//     killed leaves a usable pair. Processes may share a folder: one renews, the others
//     use the result.
//   - A storage folder that others could have written to is refused, and so is a file in
//     it. A stored root is trusted only if it has the fingerprint, or is on a list that
//     was signed by an identity of ours below a trusted root.
//   - Every call is bounded, and Open makes none. Neither a proxy of the environment nor
//     anything below $STEPPATH is used.
//   - A token from a file is sent once.
//
// # Not promised
//
// All roots of the CA and its federation vouch for all names: the CA does not say
// which trust domain each is for. A new lifetime applies from the next enrolment
// on, because a renewal keeps the old one's.
package step
