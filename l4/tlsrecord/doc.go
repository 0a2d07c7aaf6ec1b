// Package tlsrecord hands a TLS 1.3 connection over to another process in mid-stream: it
// follows the records of a crypto/tls connection, and continues the connection without
// crypto/tls.
//
// In the first process crypto/tls does all the work. A Shadow below the tls.Conn gets the
// traffic secrets from a KeyLog, counts records, and follows KeyUpdates, so that it can
// export the connection's State between two records. The State travels encoded, and in
// the next process a Conn continues from it. A Conn can be exported, too.
//
// This is the one place with a part of TLS of our own: the record layer and what may
// follow a handshake (RFC 8446, sections 4.6, 5, 6 and 7.2). Its ciphers and hashes are
// those of the standard library and of golang.org/x/crypto. There is no handshake.
//
// # Promised
//
//   - All three suites that crypto/tls negotiates, both roles, KeyUpdates of both sides,
//     session tickets, padding, messages split over records, half-closed connections.
//   - A connection whose state is not known for certain is not exported.
//   - A Conn returns the errors of crypto/tls, and sends the alerts that it sends. What a
//     peer can make it hold is less than 128 KiB; between two records it is nothing.
//   - A Conn replaces its keys before the limit of RFC 8446, 5.5.
//   - A Shadow costs one copy of a record's beginning where a read ends within a record.
//     Records are decrypted a second time only if they contain something else than
//     application data, or padding.
//
// # Not promised
//
//   - TLS 1.2. A Shadow passes it on.
//   - 0-RTT data, and certificates requested after the handshake: crypto/tls supports
//     neither.
//   - That no copy of a secret remains in memory: State.Clear overwrites the State, but
//     crypto/tls, its key log and the ciphers keep copies of their own.
//   - A session ticket that arrives after the hand-over is not used.
package tlsrecord
