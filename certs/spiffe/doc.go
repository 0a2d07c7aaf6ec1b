// Package spiffe is an issuer: it receives an identity from a SPIFFE Workload API
// agent, such as SPIRE's, through go-spiffe's client.
//
// # Promised
//
// The agent may start later, and may stop: an identity that it sent is used as long
// as it is valid. The roots of each trust domain, our own and the federated ones,
// vouch only for the SPIFFE IDs of that domain. Every wait is bounded, except the
// one for the next update.
//
// # Not promised
//
// If the agent has several identities for us, the first is used.
package spiffe
