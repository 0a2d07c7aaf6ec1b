package l4

import (
	"net"

	"golang.org/x/sys/unix"
)

// peerUID is the user of the process that connected to a unix socket, at the time it
// connected. It returns false for other connections, and if the system does not report
// the user. A user of another user namespace is reported as the overflow user, 65534.
func peerUID(conn net.Conn) (uint32, bool) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, false
	}
	var cred *unix.Ucred
	var err error
	if control(c, func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return 0, false
	}
	return cred.Uid, true
}
