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
	var cred *unix.Xucred
	var err error
	if netconn.Control(c, func(fd uintptr) {
		cred, err = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
		pid, _ = unix.GetsockoptInt(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERPID) // 0: not known
	}) != nil || err != nil {
		return 0, 0, false
	}
	return cred.Uid, pid, true
}
