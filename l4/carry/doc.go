// Package carry has the state of a server that another program continues: its sessions,
// listeners and counters, and the form in which the one program gives them to the other.
// Descriptors are the numbers that they have in the process before; they are the same after
// exec, and another process calls Renumber.
//
// # Promised
//
// Decode never panics, and allocates no more than a small multiple of its input. It
// refuses another version, and values that contradict each other.
//
// # Not promised
//
// A version reads no other one. The state is for this process alone: it has addresses of
// clients, and bytes of sessions. Whoever writes it keeps it in memory.
package carry
