// Package files reads identities from PEM, DER and PKCS #12 files and follows
// their changes.
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
// What OpenSSL reads as PEM is read alike, and so is PEM that was changed on its way
// without losing a character of its base64. A file that is cut short is an error, not
// a shorter one. A root that cannot be used is left out and named; a chain with such
// a certificate is an error. A format that is not read is named, with the command
// that converts it.
//
// # Not promised
//
// PKCS #7, Java key stores and PKCS #12 in BER are refused, and so are keys
// encrypted with PBES1 or the old PEM encryption. A file that is rewritten in place
// more slowly than the watch waits may be read before it is complete; the error is
// logged, and the previous generation stays.
package files
