package l4test

import (
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// Bound is how long a test waits for an event that should happen at once.
const Bound = 10 * time.Second

// Backend is a TCP server that handles each connection with serve.
func Backend(t testing.TB, serve func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() { // ends with the listener
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c.(*net.TCPConn)) }() // ends with its client
		}
	}()
	return ln.Addr().String()
}

func Echo(c *net.TCPConn) { io.Copy(c, c) }

// RefusedAddress is an address on which no process listens.
func RefusedAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// unable skips a test that lacks a requirement. It fails the test where all
// requirements must be met.
func unable(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("AMBASSADOR_REQUIRE_SERVERS") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}
