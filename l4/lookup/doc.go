// Package lookup finds the addresses that a configured endpoint stands for: it parses
// literal addresses, looks up names and SRV records by l4/nameserver, and says how a
// source pushes addresses that are not looked up.
//
// It keeps no state: l4/upstream remembers the answers, and decides when to ask again.
package lookup
