package bind

import (
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// TestErrorsNameTheFix asserts what a user reads when a socket cannot be bound.
func TestErrorsNameTheFix(t *testing.T) {
	system := func(number syscall.Errno) error {
		return &net.OpError{Op: "listen", Net: "tcp", Addr: &net.TCPAddr{}, Err: os.NewSyscallError("bind", number)}
	}
	const low, high, six, name = "127.0.0.1:99", "127.0.0.1:5433", "[2001:db8::1]:5433", "db.internal:5433"
	right := "ports below 1024 need a right; choose a port above 1023, or give the right by one of: setcap cap_net_bind_service=+ep " + program() +
		", AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit, sysctl net.ipv4.ip_unprivileged_port_start=0"
	if runtime.GOOS != "linux" {
		right = "only root may bind a port below 1024 here; choose a port above 1023"
	}
	for _, c := range []struct {
		address string
		err     error
		want    string
	}{
		{high, system(syscall.EADDRINUSE), "the address is in use; stop what holds it (ss -ltnp tells) or choose another port"},
		{six, system(syscall.EADDRNOTAVAIL), "this host does not have the address; choose one that it has (`ip address` lists them)"},
		{six, system(syscall.EAFNOSUPPORT), "this host has no IPv6, or the service may not use it (RestrictAddressFamilies= of a unit); choose an IPv4 address"},
		{high, system(syscall.EAFNOSUPPORT), "this host has no IPv4, or the service may not use it (RestrictAddressFamilies= of a unit); choose an IPv6 address"},
		{low, system(syscall.EACCES), right},
		{low, system(syscall.EPERM), right},
		{high, system(syscall.EACCES), "the system forbids it (permission denied); look for a rule of SELinux, AppArmor or the unit (SocketBindDeny=), or choose another port"},
		{high, system(syscall.EPERM), "the system forbids it (operation not permitted); look for a rule of SELinux, AppArmor or the unit (SocketBindDeny=), or choose another port"},
		{high, system(syscall.EMFILE), "this process has as many open files as it may; raise the limit: ulimit -n, or LimitNOFILE= in the unit"},
		{high, system(syscall.ENFILE), "the system has no room for another socket (too many open files in system); stop what uses its files and memory"},
		{high, system(syscall.ENOBUFS), "the system has no room for another socket (no buffer space available); stop what uses its files and memory"},
		{high, system(syscall.EINVAL), "bind: invalid argument"},
		{name, &net.OpError{Op: "listen", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "db.internal", IsNotFound: true}},
			"the name db.internal was not found (no such host); give an IP address of this host, or a name in /etc/hosts"},
		{high, errors.New("another"), "another"},
	} {
		err := &Error{c.address, c.err}
		if got, want := err.Error(), "listen "+c.address+": "+c.want; got != want {
			t.Errorf("%v:\n got %s\nwant %s", c.err, got, want)
		}
		if !errors.Is(err, c.err) {
			t.Errorf("%v: the cause is lost", c.err)
		}
	}
}

// TestListenExplains asserts that both ways to bind explain their errors and keep the cause.
func TestListenExplains(t *testing.T) {
	ln, err := ListenTCP(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, c := range []struct {
		address, want string
		cause         error
	}{
		{ln.Addr().String(), "the address is in use", syscall.EADDRINUSE},
		{"192.0.2.1:5433", "this host does not have the address", syscall.EADDRNOTAVAIL},
	} {
		places, err := placesAt(c.address, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, byPlace := places[0].Listen(t.Context(), nil)
		_, byAddress := ListenTCP(t.Context(), c.address)
		for how, err := range map[string]error{"Place.Listen": byPlace, "ListenTCP": byAddress} {
			if err == nil || !errors.Is(err, c.cause) || !strings.HasPrefix(err.Error(), "listen "+c.address+": "+c.want) {
				t.Errorf("%s %s: %v", how, c.address, err)
			}
		}
	}
}
