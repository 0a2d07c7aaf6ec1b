// Package handshake bounds what the TLS handshake of a client costs: its CPU time, by
// turns, and its bytes, before crypto/tls parses them.
package handshake
