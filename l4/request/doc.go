// Package request reads a client's request of SOCKS5 or HTTP CONNECT, classifies why it
// cannot be served, and answers it in its protocol.
package request
