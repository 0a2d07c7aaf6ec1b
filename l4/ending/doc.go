// Package ending names the endings of attempts, of clients and of the relay with the
// words of l4/outcome, and says what they mean: for the address that was tried, for the
// person who reads the record, and for the client.
//
// It looks at the type and the number of errors, never at their text. The file attempt.go
// has the reasons of attempts to reach an upstream and what they say about its address,
// explain.go what such an error means and its fix, session.go the reasons of clients and
// of the relay, and client.go what a client hears of a failure: its words, and the reply
// of SOCKS5 and of HTTP CONNECT.
package ending
