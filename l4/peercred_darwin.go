package l4

import (
	"net"

	"golang.org/x/sys/unix"
)

// peerUID is the user of the process that connected to a unix socket. It returns false
// for other connections, and if the system does not report the user.
func peerUID(conn net.Conn) (uint32, bool) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, false
	}
	var cred *unix.Xucred
	var err error
	if control(c, func(fd uintptr) { cred, err = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED) }) != nil || err != nil {
		return 0, false
	}
	return cred.Uid, true
}
