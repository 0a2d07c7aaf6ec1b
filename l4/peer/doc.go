// Package peer finds out which process of this host is at the other end of a connection:
// its user id, its process id and its name.
//
// # Promised
//
//   - The user of a unix socket's client is the one that the kernel recorded when the
//     client connected (SO_PEERCRED; LOCAL_PEERCRED on macOS).
//   - The user of a TCP client is the owner of the client's socket, as the kernel's socket
//     diagnosis has it (sock_diag(7), Linux). It counts only while a process holds that
//     socket: of a socket that was closed the kernel says user 0, which would be root.
//   - A client of this host whose user was not found is Lost. A client of another host is
//     not: it has no user here.
//   - A client that is bound to an interface (SO_BINDTODEVICE, a link-local address) is
//     found if that is one of the first maxInterfaces.
//   - Nothing waits for the client. A question to the kernel takes some microseconds, and
//     the search for a process is bounded by searchTimeout.
//
// # Not promised
//
//   - That the process still has the socket, or has it alone: a socket can be inherited.
//     For a client behind a proxy on this host, it is the proxy that connects.
//   - A process id of a TCP client: finding it needs the right to look into
//     /proc/PID/fd, as the same user or with CAP_SYS_PTRACE, and no Landlock sandbox.
//   - Users of TCP clients on other systems than Linux, and process names there.
package peer
