// Package htpasswd decides who may log in by name and password: it reads the lines of an
// htpasswd file with bcrypt hashes, bounds what the guesses of each client cost, and
// remembers passwords that were right. It opens no file and no connection, and knows no
// session: cmd reads and watches the file, l4 says which client asks.
//
// # Promised
//
//   - A client learns from the answer, and from its time, whether name and password are
//     right, and not whether the name is known.
//   - The guesses of one client do not delay the logins of another, and no login waits
//     longer than MaxWait for its turn.
//   - No error and no log text contains a password or a part of a hash. A password is
//     kept only as a keyed hash, with a key that lives as long as the process.
//   - Remembered never waits. Verify waits no longer than its context.
//
// # Not promised
//
//   - Other schemes than bcrypt, and costs above 14.
//   - That one name is not guessed at from many addresses: limits count clients, not
//     names, so that nobody can lock a user out.
package htpasswd
