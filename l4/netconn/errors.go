package netconn

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"syscall"
)

// IsTimeout reports whether a deadline or the kernel's timeout ended an operation.
func IsTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT)
}

// IsEOF reports whether the peer ended its side, also in the middle of a message.
func IsEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// IsReset reports whether the peer reset the connection.
func IsReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// IsHangUp reports whether the peer ended or reset the connection.
func IsHangUp(err error) bool { return IsEOF(err) || IsReset(err) }

// Alert returns the number of the alert that the peer sent; 0, the number of
// close_notify, if it sent none.
func Alert(err error) uint8 { return alertOf(err, "remote error") }

// OurAlert returns the number of the alert that we sent because of the peer; 0 if we sent
// none.
func OurAlert(err error) uint8 { return alertOf(err, "local error") }

// alertOf returns the number of an alert. Its type in crypto/tls is not exported.
func alertOf(err error, op string) uint8 {
	var e *net.OpError
	if !errors.As(err, &e) || e.Op != op {
		return 0
	}
	if v := reflect.ValueOf(e.Err); v.Kind() == reflect.Uint8 {
		return uint8(v.Uint())
	}
	return 0
}

// IsAlert reports whether the peer sent a TLS alert: crypto/tls wraps an alert in an
// OpError of that Op, and exports no type for it.
func IsAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}
