package l4test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"ambassador/l4/netconn"
)

// AlertError is the error that crypto/tls returns for an alert of the peer.
var AlertError = &net.OpError{Op: "remote error", Err: errors.New("tls: certificate required")}

func Sys(op string, n syscall.Errno) error {
	return &net.OpError{Op: op, Err: os.NewSyscallError(op, n)}
}

// AlertFrom is an alert of the peer, as crypto/tls returns it.
func AlertFrom(t *testing.T, number uint8) error {
	client, server := net.Pipe()
	defer client.Close()
	go io.Copy(io.Discard, server)                     // ends with the pipe
	go server.Write([]byte{21, 3, 3, 0, 2, 2, number}) // ends with the pipe
	err := tls.Client(client, &tls.Config{InsecureSkipVerify: true}).Handshake()
	if netconn.Alert(err) != number {
		t.Fatalf("alert %d is %v, number %d", number, err, netconn.Alert(err))
	}
	return err
}
