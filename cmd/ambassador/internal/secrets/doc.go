// Package secrets keeps what a configuration names and does not hold: certificates with
// their keys, roots, users, passwords and tokens. It reads them, replaces them at a
// reload or when their files change, and says what is wrong with each at the place of
// its key.
//
// It accepts no connection and dials none itself; issuers of certificates do, on their
// own behalf.
package secrets
