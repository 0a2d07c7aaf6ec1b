// Package files reads identities from PEM and PKCS #12 files and follows their
// changes.
//
// # Promised
//
// Certificate and key are replaced together or not at all: while they do not
// match, or a file cannot be read, the previous generation stays in use. An
// expired pair does not replace a valid one. Renames, rewrites and swapped
// symbolic links are noticed within a fraction of a second, and on file systems
// without events within PollInterval. The same content again makes no new
// generation.
//
// # Not promised
//
// Keys encrypted with PBES1 or the old PEM encryption are refused. A file that is
// rewritten in place more slowly than the watch waits may be read before it is
// complete; the error is logged, and the previous generation stays.
package files
