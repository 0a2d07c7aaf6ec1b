// Package livetest connects once to every address of the upstreams of a configuration,
// with the code of a session, and tells how each stage went: lookup, dial, PROXY header,
// STARTTLS, the server's certificate, ours, and the server's first words.
//
// It promises that a failure has the words and the fix that a session's record would
// have. It does not promise that a server accepts our certificate which judges it only
// in its own protocol, after TLS.
package livetest
