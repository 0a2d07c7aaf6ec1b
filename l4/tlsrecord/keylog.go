package tlsrecord

import (
	"bytes"
	"encoding/hex"
	"net"
	"sync"
)

// KeyLog receives the secrets of handshakes from crypto/tls, and passes each to the
// Shadow of its connection, which it finds by the client's random. So it can be the
// KeyLogWriter of any number of configurations, and each of them may be shared by any
// number of connections. Clients and servers need one each: a process may connect to
// itself, and both ends have the same random then. It keeps no secret. The zero value is
// ready. Safe for concurrent use.
type KeyLog struct {
	mu      sync.Mutex
	shadows map[random]*Shadow // guarded by mu; only connections in their handshakes
}

// random is the random of a ClientHello.
type random [32]byte

// Client returns a Shadow for a tls.Client on it.
func (l *KeyLog) Client(conn net.Conn) *Shadow { return l.shadow(conn, true) }

// Server returns a Shadow for a tls.Server on it.
func (l *KeyLog) Server(conn net.Conn) *Shadow { return l.shadow(conn, false) }

func (l *KeyLog) shadow(conn net.Conn, client bool) *Shadow {
	return &Shadow{conn: conn, setup: &setup{log: l}, in: receiver{client: client}}
}

// watch makes Write pass on the secrets of a handshake, until forget.
func (l *KeyLog) watch(r random, s *Shadow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shadows == nil {
		l.shadows = map[random]*Shadow{}
	}
	l.shadows[r] = s
}

func (l *KeyLog) forget(r random, s *Shadow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shadows[r] == s {
		delete(l.shadows, r)
	}
}

// Write receives one line in NSS's format: label, client random, secret. It never fails,
// and ignores all but the first secrets of application traffic.
func (l *KeyLog) Write(line []byte) (int, error) {
	field := bytes.Fields(line)
	if len(field) != 3 {
		return len(line), nil
	}
	client := bytes.Equal(field[0], []byte("CLIENT_TRAFFIC_SECRET_0"))
	if !client && !bytes.Equal(field[0], []byte("SERVER_TRAFFIC_SECRET_0")) {
		return len(line), nil
	}
	var r random
	var secret [maxSecret]byte
	if len(field[1]) != hex.EncodedLen(len(r)) || len(field[2]) > hex.EncodedLen(len(secret)) {
		return len(line), nil
	}
	hex.Decode(r[:], field[1])
	n, _ := hex.Decode(secret[:], field[2])
	l.mu.Lock()
	s := l.shadows[r]
	l.mu.Unlock()
	if s != nil {
		s.learn(client, secret[:n])
	}
	clear(secret[:])
	return len(line), nil
}
