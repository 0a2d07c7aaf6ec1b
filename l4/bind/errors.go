package bind

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
)

// Error is a socket that could not be bound. Its text names the address and the fix.
type Error struct {
	Address string // HOST:PORT
	Err     error
}

// Unwrap returns the system's error.
func (e *Error) Unwrap() error { return e.Err }

func (e *Error) Error() string {
	return "listen " + e.Address + ": " + e.explanation()
}

// explanation says what happened and how to fix it.
func (e *Error) explanation() string {
	host, _, _ := splitListen(e.Address)
	ip, notIP := netip.ParseAddr(host)
	var lookup *net.DNSError
	switch {
	case errors.Is(e.Err, syscall.EADDRINUSE):
		return "the address is in use; stop what holds it (ss -ltnp tells) or choose another port"
	case errors.Is(e.Err, syscall.EADDRNOTAVAIL):
		return "this host does not have the address; choose one that it has (`ip address` lists them)"
	case errors.Is(e.Err, syscall.EAFNOSUPPORT) && notIP == nil && ip.Is4():
		return "this host has no IPv4, or the service may not use it (RestrictAddressFamilies= of a unit); choose an IPv6 address"
	case errors.Is(e.Err, syscall.EAFNOSUPPORT):
		return "this host has no IPv6, or the service may not use it (RestrictAddressFamilies= of a unit); choose an IPv4 address"
	case errors.Is(e.Err, syscall.EACCES), errors.Is(e.Err, syscall.EPERM):
		return e.denied()
	case errors.Is(e.Err, syscall.EMFILE):
		return "this process has as many open files as it may; raise the limit: ulimit -n, or LimitNOFILE= in the unit"
	case errors.Is(e.Err, syscall.ENFILE), errors.Is(e.Err, syscall.ENOBUFS), errors.Is(e.Err, syscall.ENOMEM):
		return fmt.Sprintf("the system has no room for another socket (%v); stop what uses its files and memory", errnoOf(e.Err))
	case errors.As(e.Err, &lookup):
		return fmt.Sprintf("the name %s was not found (%s); give an IP address of this host, or a name in /etc/hosts", lookup.Name, lookup.Err)
	}
	return e.bare()
}

// privilegedPorts is the first port that every user may bind, by default.
const privilegedPorts = 1024

// denied explains a missing right.
func (e *Error) denied() string {
	if _, port, _ := splitListen(e.Address); port == 0 || port >= privilegedPorts {
		return fmt.Sprintf("the system forbids it (%v); look for a rule of SELinux, AppArmor or the unit (SocketBindDeny=), or choose another port", errnoOf(e.Err))
	}
	if runtime.GOOS != "linux" {
		return fmt.Sprintf("only root may bind a port below %d here; choose a port above %d", privilegedPorts, privilegedPorts-1)
	}
	return fmt.Sprintf("ports below %d need a right; choose a port above %d, or give the right by one of: setcap cap_net_bind_service=+ep %s, "+
		"AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit, sysctl net.ipv4.ip_unprivileged_port_start=0", privilegedPorts, privilegedPorts-1, program())
}

// program is the path of the program's file, for setcap, which follows no link.
func program() string {
	path, err := os.Executable()
	if err != nil {
		return "FILE"
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// bare is the error without the address that the text has already.
func (e *Error) bare() string {
	var op *net.OpError
	if errors.As(e.Err, &op) {
		return op.Err.Error()
	}
	return e.Err.Error()
}

// errnoOf is the system's error alone, if err has one.
func errnoOf(err error) error {
	var number syscall.Errno
	if errors.As(err, &number) {
		return number
	}
	return err
}
