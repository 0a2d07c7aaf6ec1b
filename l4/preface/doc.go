// Package preface is the wire form of what a client may say before its own bytes: a
// PROXY header, a SOCKS5 or HTTP CONNECT request, a TLS ClientHello, and the hints that
// some of them carry. It reads and writes those messages and decides nothing: which
// answer a failure gets, and what a hint may ask for, are l4's tables.
//
// It closes nothing, sets no deadline, starts no goroutine and knows no session: the
// caller bounds the connection.
//
// # Promised
//
//   - Not a byte is lost: what was read and is not part of the message is in
//     Request.Early or in what ReadClientHello returns.
//   - A PROXY header is read to its last byte and no further.
//   - What is held for a client is bounded: 16 KiB of an HTTP request, 64 KiB of a
//     PROXY header, 40 KiB of a ClientHello, 512 bytes of SOCKS5.
//   - An *Error says that the client is wrong, a *LoginError that it offers no
//     password. Other errors are those of the connection, where an end inside a message
//     is io.ErrUnexpectedEOF, or those of Credentials.
//   - No error contains a password or an HTTP header.
//
// # Not promised
//
//   - A bound on time.
//   - SOCKS4, BIND and UDP ASSOCIATE, and HTTP methods other than CONNECT.
//   - That a ClientHello is one that a TLS server would accept.
package preface
