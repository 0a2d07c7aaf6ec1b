// Package step is an issuer: it gets an identity from a step-ca, by smallstep's
// API client, and keeps it.
//
// The first certificate comes for a one-time token from a file, or for one that
// we make with the key of a JWK provisioner, which the CA keeps and a password
// opens. Later ones come over mutual TLS with the certificate in use, each for a
// new key (rekey). One that has expired is renewed with a token signed by its key,
// if the provisioner allows it; else, and where a renewal is refused, we enrol
// again.
//
// # Promised
//
//   - The CA is the one whose root has the fingerprint; its later roots, and those
//     it is federated with, are taken from the CA itself.
//   - Storage has mode 0600 and is replaced whole, so that a process that is killed
//     leaves a usable pair. Processes may share it: one renews, the others take
//     what it got.
//   - A storage folder that others could have written is refused, and so is a file in
//     it. Of its roots those are trusted that have the fingerprint, or that are in a
//     list which an identity of ours, below a trusted root, has signed.
//   - Every call has a bound, and Open makes none. No proxy of the environment and
//     nothing below $STEPPATH is used.
//   - A token from a file is sent once.
//
// # Not promised
//
// All roots of the CA and its federation vouch for all names: it does not say
// which trust domain each is for. A new lifetime counts from the next enrolment
// on, because a renewal keeps the old one's.
package step
