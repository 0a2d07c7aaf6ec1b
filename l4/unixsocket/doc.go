// Package unixsocket makes listening unix sockets whose files no other process can open
// or replace before their mode and owner are set.
package unixsocket
