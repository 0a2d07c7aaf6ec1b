package main

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"time"
)

// The first byte of a connection tells the target what to do after it has sent that byte
// back.
const (
	wantEcho = 'e' // send back everything
	wantUp   = 'u' // read blocks, then answer how many bytes they had (8 bytes)
	wantDown = 'd' // send blocks for a time (8 bytes, nanoseconds)
)

// target is the server behind the programs.
type target struct{ plain, tls net.Listener }

func startTarget(c certs) (*target, error) {
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	encrypted, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		plain.Close()
		return nil, err
	}
	t := &target{plain, tls.NewListener(encrypted, c.server())}
	go accept(t.plain)
	go accept(t.tls)
	return t, nil
}

// close ends the listeners; the connections end with the programs.
func (t *target) close() {
	t.plain.Close()
	t.tls.Close()
}

func accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			serve(conn)
		}()
	}
}

// serve does what the first byte says. The client sees a failure as an early end.
func serve(conn net.Conn) {
	buf := make([]byte, 4096)
	if _, err := io.ReadFull(conn, buf[:1]); err != nil {
		return
	}
	if _, err := conn.Write(buf[:1]); err != nil {
		return
	}
	switch buf[0] {
	case wantEcho:
		io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{conn}, buf)
	case wantUp:
		if n, err := receiveBlocks(conn); err == nil {
			conn.Write(binary.BigEndian.AppendUint64(nil, n))
		}
	case wantDown:
		if _, err := io.ReadFull(conn, buf[:8]); err == nil {
			sendBlocks(conn, time.Now().Add(time.Duration(binary.BigEndian.Uint64(buf))))
		}
	}
}

// sendBlocks sends blocks until end, at least one. The first byte of the last is 1.
func sendBlocks(w io.Writer, end time.Time) (sent uint64, err error) {
	block := make([]byte, blockSize)
	for block[0] == 0 {
		if !time.Now().Before(end) {
			block[0] = 1
		}
		n, err := w.Write(block)
		sent += uint64(n)
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// receiveBlocks reads blocks up to the last.
func receiveBlocks(r io.Reader) (n uint64, err error) {
	block := make([]byte, blockSize)
	for block[0] == 0 {
		if _, err := io.ReadFull(r, block); err != nil {
			return n, err
		}
		n += blockSize
	}
	return n, nil
}
