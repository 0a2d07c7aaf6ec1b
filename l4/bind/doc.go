// Package bind says what the addresses of listeners mean, and binds TCP sockets to them.
//
// Promised: an address means the same with and without the sandbox, and whatever the
// system's defaults are (IPV6_V6ONLY, MPTCP). A port changes from one socket of this
// process to another without a moment in which no socket has it.
//
// Not promised: unix sockets, which package l4/unixsocket makes. The addresses of a
// network interface are those that it has when Places is called.
package bind
