// Package nameserver looks up names: with Go's resolver, which knows /etc/hosts, search
// domains and the order of RFC 6724, and with what a proxy needs besides. It asks several
// servers at once when one is silent, and it does not lose the addresses of one family
// because the query for the other is never answered.
//
// # Promised
//
// A lookup ends with the context of the caller. Callers that look up the same name at the
// same time share one lookup, which ends when the last of them has gone.
//
// # Not promised
//
// Nothing is cached. On systems other than Linux the system's own resolver is asked, as
// long as no servers are configured; it has its own rules for silent servers.
package nameserver
