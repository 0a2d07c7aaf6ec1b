package peer

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"syscall"
	"time"

	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
)

// Who is the process at the other end of a connection. What is not known is zero.
type Who struct {
	// UID is the user id of the client, if HasUID.
	UID    uint32
	HasUID bool
	// Lost says that the client is on this host, and that its user was not found.
	Lost bool
	// PID is the process id in our namespace; 0 if it is not known.
	PID int
	// Process is the name of the process, as ps has it: at most 15 bytes, which the
	// process chooses.
	Process string

	inode uint32 // of the client's TCP socket
}

// searchTimeout bounds the search for the process that holds a socket.
const searchTimeout = 100 * time.Millisecond

// Of returns the user at the other end of a connection, and of a unix socket the process
// id. Redirected says that the client connected to another address than conn's own, and
// that the system sent the connection here.
func Of(conn net.Conn, redirected bool) Who {
	dialled := netconn.Unmapped(conn.LocalAddr())
	if redirected {
		dialled, _ = netconn.OriginalDestination(conn) // an error: not valid, and nothing is known
	}
	return of(conn, dialled)
}

// Note records what is known.
func (w *Who) Note(r *outcome.Record) {
	if w.HasUID {
		r.UID = outcome.UserIDOf(w.UID)
	}
	r.PID, r.Process = w.PID, w.Process
}

// of is Of for the address that the client of a TCP connection connected to.
func of(conn net.Conn, dialled netip.AddrPort) Who {
	if _, ok := conn.(*net.UnixConn); ok {
		uid, pid, known := credentials(conn)
		return Who{UID: uid, HasUID: known, Lost: !known, PID: pid}
	}
	client := netconn.Unmapped(conn.RemoteAddr())
	if !client.IsValid() {
		return Who{}
	}
	var w Who
	if dialled = netip.AddrPortFrom(dialled.Addr().Unmap(), dialled.Port()); dialled.IsValid() {
		w = ofTCP(client, dialled, anyInterface)
	}
	if !w.HasUID && isOurs(client.Addr()) {
		w = ofBound(client, dialled)
		w.Lost = !w.HasUID
	}
	return w
}

const (
	// anyInterface is the number of no interface: it finds sockets that are bound to none.
	anyInterface = 0
	// maxInterfaces bounds the interfaces that ofBound tries.
	maxInterfaces = 32
)

// ofBound is ofTCP for a client that is bound to an interface (SO_BINDTODEVICE), as every
// socket with a link-local address is. The kernel finds such a socket by its interface only.
func ofBound(client, dialled netip.AddrPort) Who {
	all, err := net.Interfaces()
	if err != nil || !dialled.IsValid() {
		return Who{}
	}
	for _, i := range candidates(all, client.Addr().Zone()) {
		if w := ofTCP(client, dialled, i.Index); w.HasUID {
			return w
		}
	}
	return Who{}
}

// candidates are the interfaces that a client may be bound to: with a zone the one of that
// name or number, else the first of all.
func candidates(all []net.Interface, zone string) []net.Interface {
	if zone == "" {
		return all[:min(len(all), maxInterfaces)]
	}
	at := slices.IndexFunc(all, func(i net.Interface) bool { return zone == i.Name || zone == strconv.Itoa(i.Index) })
	if at < 0 {
		return nil
	}
	return all[at : at+1]
}

// UID is the user of the process that connected to a unix socket, at the time it
// connected. It returns false for other connections, and if the system does not report
// the user. A user of another user namespace is reported as the overflow user, 65534.
func UID(conn net.Conn) (uint32, bool) {
	uid, _, ok := credentials(conn)
	return uid, ok
}

// FindProcess sets PID and Process, as far as they can be found. It may read files for
// up to searchTimeout, and less if ctx ends.
func (w *Who) FindProcess(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, searchTimeout)
	defer cancel()
	if w.PID == 0 && w.inode != 0 {
		w.PID = holders.find(ctx, w.inode)
	}
	if w.PID != 0 {
		w.Process = processName(w.PID)
	}
}

// isOurs reports whether an address is one of this host. If that cannot be found out, it
// is: then no rule on uid lets its client pass.
func isOurs(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	l, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err == nil {
		l.Close() // with ip_nonlocal_bind, every address can be bound
	} else if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return false
	}
	all, err := net.InterfaceAddrs()
	return err != nil || slices.ContainsFunc(all, func(of net.Addr) bool {
		p, ok := of.(*net.IPNet)
		return ok && p.IP.Equal(a.AsSlice())
	})
}
