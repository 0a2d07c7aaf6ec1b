// Package tlscause says why a TLS handshake failed, and how to fix that. One alert, or
// one error of crypto/tls, has many causes, and each has another fix: a server that
// sends handshake_failure may miss a cipher suite, or a certificate of ours. The package
// therefore looks at what both sides have offered: at the server's request for a
// certificate, at its ServerHello, at the ClientHello of a client.
//
// Watch observes a handshake in which we are the client, and Downstream explains one in
// which we are the server. Why we refuse a peer's certificate is not decided here: those
// errors come from the configuration's VerifyConnection and know their fix.
//
// # Promised
//
// The explained error wraps the original one, so that its reason stays the same. The
// texts of crypto/tls are shown and never parsed. What a peer sends is shortened before
// it is shown. After a handshake nothing of the peer's is kept but a Request of at most
// 1 KiB.
//
// # Not promised
//
// TLS 1.3 encrypts the handshake after the ServerHello: a certificate of the server that
// crypto/tls cannot parse is known by the error's text alone. A server that finds no
// fault with our certificate in TLS and then refuses it in its own protocol is not
// recognized.
package tlscause
