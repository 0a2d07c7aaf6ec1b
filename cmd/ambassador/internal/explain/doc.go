// Package explain answers what the rules of a configuration decide about one connection,
// and why: `check --explain`.
//
// It looks up a name where a rule depends on its addresses, and contacts no other host.
package explain
