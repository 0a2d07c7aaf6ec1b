// Package cmdtest has what the tests of this command share: configurations, certificates,
// servers and clients, and the output of what runs.
//
// It is for tests alone; no other package may import it.
package cmdtest
