package ledger

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// Ending classifies the ending of a session whose side failed with err.
func Ending(side Side, err error) End {
	var failure *TLSError
	lost, secure := isLost(err), errors.As(err, &failure)
	switch {
	case side == Downstream && secure:
		return EndDownstreamTLS
	case secure:
		return EndUpstreamTLS
	case side == Downstream && lost:
		return EndDownstreamLost
	case side == Downstream:
		return EndDownstreamReset
	case lost:
		return EndUpstreamLost
	}
	return EndUpstreamReset
}

// TLSError is an error that TLS has found after the handshake: an alert of the peer,
// bytes that are no valid record, a renegotiation that is not allowed. The connection
// below has not failed.
type TLSError struct{ Err error }

// Error is the text of the error of crypto/tls.
func (e *TLSError) Error() string { return e.Err.Error() }

// Unwrap returns the error of crypto/tls.
func (e *TLSError) Unwrap() error { return e.Err }

// TLSFailure returns the error of a tls.Conn as a *TLSError, unless the connection below
// has failed or ended.
func TLSFailure(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return err
	}
	for _, below := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, os.ErrDeadlineExceeded} {
		if errors.Is(err, below) {
			return err
		}
	}
	return &TLSError{err}
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// isLost reports whether the network gave up on the peer: keepalive or
// retransmission went unanswered.
func isLost(err error) bool {
	for _, n := range []syscall.Errno{syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(err, n) {
			return true
		}
	}
	return false
}
