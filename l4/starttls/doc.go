// Package starttls implements the dialogue of each STARTTLS protocol: the plaintext
// messages to a server before TLS begins, and the messages to a client that does
// not know about the TLS. It is pure code over io.ReadWriter: it opens and closes
// nothing, sets no deadline and starts no goroutine. There is one file per protocol;
// identify.go guesses the protocol of a server from an unexpected answer.
//
// # Messages that are read, sent, edited and refused
//
// postgres: PostgreSQL documentation, chapter "Frontend/Backend Protocol",
// protocol 3.0 and 3.2. Lengths include themselves, not the type byte. With
// Options.Direct Upgrade sends and reads nothing, and TLS begins at once.
//
//	part      from      message                       what happens
//	Upgrade   us        SSLRequest                    sent: 00 00 00 08 04 d2 16 2f
//	          upstream  S                             read; TLS begins, nothing more is read
//	          upstream  N, E, any other byte          read; *RefusedError with the fix
//	Finish    client    SSLRequest, GSSENCRequest     read, answered N; the fourth: *GreetingError
//	          client    CancelRequest (16–268 bytes)  read, returned in Result.Cancel; ends the dialogue
//	          client    startup 3.x (8–10004 bytes)   forwarded as it is
//	          client    anything else                 *GreetingError that names it
//	          upstream  v NegotiateProtocolVersion    forwarded as it is
//	          upstream  N NoticeResponse              forwarded as it is
//	          upstream  R AuthenticationSASL (10)     SCRAM-SHA-256-PLUS removed, length adjusted, forwarded;
//	                                                  nothing else offered: *RefusedError; ends the dialogue
//	          upstream  R of any other code           forwarded as it is; ends the dialogue
//	          upstream  E ErrorResponse               forwarded as it is; ends the dialogue
//	          upstream  anything else, longer than    *RefusedError, nothing of it forwarded
//	                    64 KiB, or the 33rd message
//
// ldap: RFC 4511 §4.14 and, for TLS and authentication, RFC 4513.
//
//	Upgrade   us        ExtendedRequest StartTLS      sent: message 1, 1.3.6.1.4.1.1466.20037
//	          upstream  ExtendedResponse 1, result 0  read to its last byte; TLS begins
//	          upstream  any other result, message or  *RefusedError with the result's text
//	                    operation, or over 64 KiB
//	Refuse    client    its first request             read, answered with result 52, unavailable
//
// smtp: RFC 5321 and RFC 3207; a reply has at most 32 KiB, in lines of at most 4.
//
//	Upgrade   upstream  220 greeting, all lines       read, kept
//	          upstream  421 greeting                  *RefusedError; passed on by Refuse
//	          us        EHLO [127.0.0.1]              sent, with Options.EHLOName if it is set
//	          upstream  250 with STARTTLS in its list read, dropped
//	          us        STARTTLS                      sent
//	          upstream  220                           read to its last byte; TLS begins
//	          upstream  anything else                 *RefusedError
//	Finish    upstream  the kept greeting             passed on as it is; the client's EHLO follows
//
// lmtp: RFC 2033; as smtp, with LHLO instead of EHLO.
//
// imap: RFC 9051 (and RFC 3501) §6.2.1; lines of at most 4 KiB.
//
//	Upgrade   upstream  * OK greeting                 read, kept without its response code: CAPABILITY
//	                                                  is that before TLS, ALERT and REFERRAL are
//	                                                  not trusted
//	          upstream  * BYE greeting                *RefusedError
//	          upstream  * PREAUTH greeting            *RefusedError: TLS cannot begin after it
//	          us        A1 STARTTLS                   sent
//	          upstream  untagged lines, at most 31    read, dropped
//	          upstream  A1 OK                         read to its last byte; TLS begins
//	          upstream  anything else                 *RefusedError
//	Finish    upstream  the kept greeting             passed on
//
// pop3: RFC 1939 and RFC 2595; lines of at most 4 KiB.
//
//	Upgrade   upstream  +OK greeting                  read, kept
//	          upstream  -ERR greeting                 *RefusedError; passed on by Refuse
//	          us        STLS                          sent
//	          upstream  +OK                           read to its last byte; TLS begins
//	          upstream  anything else                 *RefusedError
//	Finish    upstream  the kept greeting             passed on as it is; APOP's timestamp is in it
//
// sieve: RFC 5804, ManageSieve; an answer has at most 32 KiB, in lines of at most 4,
// and literals.
//
//	Upgrade   upstream  capabilities, OK              read, dropped: the server sends them again
//	                                                  under TLS
//	          upstream  no STARTTLS among them, NO,   *RefusedError
//	                    BYE
//	          us        STARTTLS                      sent
//	          upstream  OK                            read to its last byte; TLS begins
//	          upstream  anything else                 *RefusedError
//
// nntp: RFC 3977 and RFC 4642; lines of at most 4 KiB.
//
//	Upgrade   upstream  200 or 201 greeting           read, kept
//	          upstream  400 greeting                  *RefusedError; passed on by Refuse
//	          us        STARTTLS                      sent
//	          upstream  500                           MODE READER is sent; its 200 or 201 replaces
//	                                                  the kept greeting; STARTTLS is sent again
//	          upstream  382                           read to its last byte; TLS begins
//	          upstream  anything else                 *RefusedError
//	Finish    upstream  the kept greeting             passed on as it is
//
// nats: NATS's "Client Protocol"; an INFO of at most 32 KiB. With Options.Direct, as
// handshake_first of the server wants it, TLS begins at once, and Finish reads the INFO.
//
//	Upgrade   upstream  INFO with tls_required or     read, kept; TLS begins
//	                    tls_available
//	          upstream  -ERR                          *RefusedError; passed on by Refuse
//	          upstream  INFO without either,          *RefusedError
//	                    anything else
//	Finish    upstream  the kept INFO                 passed on; true of tls_required, tls_available
//	                                                  and tls_verify becomes false
//	NotTLS    upstream  -ERR in place of TLS          *RefusedError: the server is full
//
// mysql: MySQL's "Client/Server Protocol", "Connection Phase", and MariaDB's
// "Connecting"; TLS needs the client's first message. Packets of at most 96 KiB,
// 64 of the server's. Sequence numbers count both sides' packets.
//
//	Upgrade   upstream  greeting, protocol 10         read, kept; at most 4 KiB
//	          upstream  ERR                           *RefusedError; passed on by Refuse
//	          upstream  greeting without CLIENT_SSL,  *RefusedError
//	                    anything else
//	Begin     upstream  the kept greeting             passed on with CLIENT_SSL removed
//	          client    handshake response            read, kept
//	          client    SSLRequest, protocol before   *GreetingError
//	                    4.1, anything else
//	          us        SSLRequest                    sent: the response's first 32 bytes with
//	                                                  CLIENT_SSL; TLS begins
//	LogIn     us        handshake response            sent by a probe, number 2: native or
//	                                                  caching_sha2 password; then COM_QUIT
//	          upstream  AuthMoreData 4, auth switch   answered with the password itself
//	                    to sha256_password
//	          upstream  auth switch to another        *RefusedError, and so is ERR
//	                    plugin, anything else
//	Finish    client    the kept response             passed on with CLIENT_SSL, number 2
//	          upstream  OK, ERR                       passed on, number less 1; ends the dialogue
//	          upstream  AuthMoreData 3                passed on, number less 1; the server goes on
//	          upstream  AuthMoreData 4: the password  to a client on a unix socket: passed on, number
//	                                                  less 1. To others, or if it then asks for the
//	                                                  server's RSA key: *GreetingError with the fix
//	          client    answer to sha256_password     *GreetingError with the fix, unless it ends in
//	                                                  a NUL, as the password itself does
//	          upstream  ERR after such an answer in   *GreetingError with the fix and the error
//	                    the kept response
//	          upstream  auth switch, plugin data      passed on, number less 1; the client's turn
//	          client    its answer                    passed on, number plus 1
//	          either    a number out of order, or     *RefusedError, *GreetingError
//	                    over the bounds
//
// xmpp: RFC 6120 §5; TLS needs the client's first message, which names the stream's
// domain. No comments, declarations or CDATA; at most 8 KiB from the client, and 32
// from the server, with at most 64 features.
//
//	Begin     client    stream header of 1.0, for     read to its last byte, kept
//	                    jabber:client, jabber:server
//	          client    any other                     *GreetingError
//	          us        stream header                 sent: the client's to and namespace (and from,
//	                                                  between servers), nothing else of it
//	          upstream  header, features with TLS     read, dropped
//	          us        starttls                      sent
//	          upstream  proceed                       read to its last byte; TLS begins
//	          upstream  anything else                 *RefusedError
//	Finish    client    the kept header               passed on as it is; the server's is its answer
//
// A kept greeting was received in plaintext, so an attacker on that connection can
// change it, and nothing else. A text greeting is passed on as one reply in
// well-formed lines, without a code that a client acts upon. A MySQL client's
// response to the greeting goes to the verified server under TLS.
//
// SCRAM-SHA-256-PLUS binds the password exchange to the TLS connection
// (RFC 5929). The client has none, so libpq aborts when it is offered; without
// it the exchange is SCRAM-SHA-256 (RFC 7677) through our TLS.
//
// # Promised
//
//   - No byte behind the last message of a dialogue is read, so plaintext is never
//     taken for data received under TLS (CVE-2011-0411, CVE-2021-23214,
//     CVE-2021-23222), and the relay begins at the start of a message.
//   - Upgrade sends no byte of a client and does not wait for one. If a protocol's
//     TLS needs the client (Protocol.NeedsClient), Dialogue.Begin waits for it.
//   - Only whole messages are forwarded, unchanged except as in the table above.
//   - Refusal is the default: a message that is not in the table is an error, and so
//     is a server that does not offer TLS (CVE-2015-3152) or begins a session
//     before it (CVE-2020-12398).
//   - A dialogue holds at most 128 KiB, whatever lengths the peers claim.
//
// # Not promised
//
//   - A bound on time. Callers set deadlines on the connections.
//   - A MySQL authentication plugin, other than caching_sha2_password, whose server
//     sends two packets in a row: the session waits for its client until the
//     deadline.
//   - That an S came from PostgreSQL: any server whose first byte is S (a MySQL
//     greeting of 83 bytes, SSH) passes Upgrade and fails the TLS handshake.
package starttls
