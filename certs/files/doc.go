// Package files reads identities from PEM files and follows their changes.
//
// # Promised
//
// A pair is taken whole or not at all: while certificate and key do not fit, or
// a file cannot be read, the generation before stays in use. An expired pair
// does not replace a valid one. Renames, rewrites and swapped symbolic links are
// seen within a fraction of a second, and on file systems without events within
// PollInterval. The same content again is no new generation.
//
// # Not promised
//
// Encrypted keys and PKCS #12 are not read. A file that is rewritten in place
// more slowly than the watch waits is read in between; what is then incomplete is
// told and does no harm.
package files
