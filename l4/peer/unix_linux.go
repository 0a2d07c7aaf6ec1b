package peer

import (
	"net"

	"golang.org/x/sys/unix"

	"ambassador/l4/netconn"
)

// credentials are those of the process that connected to a unix socket.
func credentials(conn net.Conn) (uid uint32, pid int, ok bool) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, 0, false
	}
	var cred *unix.Ucred
	var err error
	if netconn.Control(c, func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return 0, 0, false
	}
	return cred.Uid, int(cred.Pid), true
}
