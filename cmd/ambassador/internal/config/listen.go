package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Where a listener listens: HOST:PORT, a port alone, %INTERFACE:PORT, unix:/path,
// unix:@name or systemd:NAME.

// listenField is a listener's listen.
func (l *ListenerSection) listenField() field {
	return severalField("listen", `One address or a list: HOST:PORT (0.0.0.0 is IPv4 alone; [::] is both families, unless an IPv4 address has the same port; a port of 0 lets the system choose); a port alone, which is localhost: 127.0.0.1 and ::1, as far as the host has them; "%INTERFACE:PORT", all addresses that a network interface has at the start or reload; unix:/path; unix:@name, an abstract socket of Linux, which has no file and no mode; systemd:NAME, sockets passed by systemd.`,
		map[string]any{"type": []string{"string", "integer"}}, &l.Listen, checkListen)
}

func checkListen(s string) error {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return checkUnixPath(path)
	}
	if name, ok := strings.CutPrefix(s, "systemd:"); ok {
		if name == "" {
			return errors.New("systemd: needs the socket's FileDescriptorName, like systemd:postgres")
		}
		return nil
	}
	if _, err := strconv.ParseUint(s, 10, 16); err == nil {
		return nil // a port of localhost
	}
	host, _, err := net.SplitHostPort(s)
	switch {
	case err == nil && host == "":
		return fmt.Errorf("%q is every address of this host; write 127.0.0.1%s, or 0.0.0.0%s with tls", s, s, s)
	case err == nil && host == "%":
		return fmt.Errorf("%q names no network interface; write one like %%eth0%s", s, s[1:])
	}
	return CheckHostPort(s)
}

// ListenAddrs returns the IP addresses that an address of a listener, of admin or of
// metrics stands for, as far as the file tells: interfaces and other names are known
// only at run time.
func ListenAddrs(listen string) (out []netip.AddrPort) {
	host, text, err := net.SplitHostPort(listen)
	if err != nil {
		host, text = "localhost", listen
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil
	}
	add := func(ip netip.Addr) { out = append(out, netip.AddrPortFrom(ip.Unmap(), uint16(port))) }
	switch ip, err := netip.ParseAddr(host); {
	case err == nil:
		add(ip)
	case host == "localhost":
		add(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		add(netip.IPv6Loopback())
	case host == "":
		add(netip.IPv6Unspecified())
	}
	return out
}

// takenAddresses finds addresses that two sockets of the file would have.
type takenAddresses struct {
	texts map[string]string // the holder of each text that stands for an address
	addrs []takenAddress
}

type takenAddress struct {
	at           netip.AddrPort
	text, holder string
}

// take notes an address of holder. It returns why it cannot be bound; empty if it can.
func (t *takenAddresses) take(listen, holder string) (why string) {
	if listen == "" {
		return ""
	}
	key := filepath.Clean(listen)
	if other, ok := t.texts[key]; ok {
		if other == holder || strings.HasSuffix(listen, ":0") || listen == "0" {
			return ""
		}
		return fmt.Sprintf("%s is the address of %s already; choose another", listen, other)
	}
	t.texts[key] = holder
	all := ListenAddrs(listen)
	for _, other := range t.addrs {
		overlaps := func(at netip.AddrPort) bool {
			return overlap(at, other.at) && (at != other.at || holder != other.holder)
		}
		if slices.ContainsFunc(all, overlaps) {
			why = fmt.Sprintf("%s overlaps with %s, an address of %s; choose another", listen, other.text, other.holder)
			break
		}
	}
	for _, at := range all {
		t.addrs = append(t.addrs, takenAddress{at, listen, holder})
	}
	return why
}

// overlap reports whether the system refuses to bind both addresses.
func overlap(a, b netip.AddrPort) bool {
	switch {
	case a.Port() != b.Port() || a.Port() == 0 || a.Addr().Is4() != b.Addr().Is4():
		return false
	case a.Addr().IsUnspecified() || b.Addr().IsUnspecified():
		return true
	}
	return a.Addr() == b.Addr()
}

// checkTaken finds addresses that are given twice.
func (f *File) checkTaken(d *decoder) {
	t := takenAddresses{texts: map[string]string{}}
	take := func(listen, path, holder string) {
		if why := t.take(listen, holder); why != "" {
			d.failAt(path, "%s", why)
		}
	}
	take(f.Admin.Listen, "admin.listen", "admin")
	take(f.Metrics.Listen, "metrics.listen", "metrics")
	for _, l := range f.Listeners {
		for i, listen := range l.Listen {
			take(listen, l.listenKey(d, i), "listener "+l.Name)
		}
	}
}

// listenKey is the path of an address of the listener.
func (l *ListenerSection) listenKey(d *decoder, i int) string {
	path := "listeners." + l.Name + ".listen"
	if item := fmt.Sprintf("%s[%d]", path, i); d.at[item] != nil {
		return item
	}
	return path
}

// validateListen finds what is wrong with the addresses of a listener.
func (l *ListenerSection) validateListen(d *decoder, path string) {
	if d.at[path+".listen"] == nil {
		d.failAt(path, "no listen; give HOST:PORT, unix:/path or systemd:NAME")
	}
	for i, listen := range l.Listen {
		key := l.listenKey(d, i)
		checkSocketPath(d, listen, key)
		if l.TLS == nil && !l.UnsafePlaintextListen && othersReach(listen) {
			tls := ", give tls"
			if d.flagOf != nil {
				tls = "" // there is no flag for it
			}
			d.failAt(key, "plaintext on %s, which others can reach; listen on 127.0.0.1 or a unix socket%s, or set unsafe_plaintext_listen: true", listen, tls)
		}
	}
	if d.at[path+".limits.per_client"] != nil && l.onlyUnix() {
		d.failAt(path+".limits.per_client", "the clients of a unix socket have no addresses to tell them apart by; remove it, limits.connections bounds them all")
	}
	if d.at[path+".socket"] != nil && !slices.ContainsFunc(l.Listen, isSocketFile) {
		d.failAt(path+".socket", "only a listener on unix:/path has a socket file; remove socket")
	}
}

// validateSocket finds what is wrong with the unix socket of the admin API.
func (a *AdminSection) validateSocket(d *decoder) {
	checkSocketPath(d, a.Listen, "admin.listen")
	for _, key := range []string{"admin.mode", "admin.owner"} {
		if d.at[key] != nil && a.Listen != "" && !isUnix(a.Listen) {
			d.failAt(key, "only a unix socket has a file; remove it, or set admin.listen to unix:/path")
		}
	}
	if mode, err := strconv.ParseUint(a.Socket.Mode, 8, 32); err == nil && mode&0o002 != 0 && !a.UnsafeAdminListen {
		d.failAt("admin.mode", "%s lets every user of this host change and end everything; use 0660 and owner: USER:GROUP, or set unsafe_admin_listen: true", a.Socket.Mode)
	}
}

// othersReach reports whether other hosts can reach an address for certain. Interfaces
// and other names are judged when they are bound.
func othersReach(listen string) bool {
	return slices.ContainsFunc(ListenAddrs(listen), func(at netip.AddrPort) bool { return !at.Addr().IsLoopback() })
}

func isUnix(listen string) bool { return strings.HasPrefix(listen, "unix:") }

func isSystemd(listen string) bool { return strings.HasPrefix(listen, "systemd:") }

// isSocketFile reports whether an address is a unix socket that has a file.
func isSocketFile(listen string) bool { return isUnix(listen) && !strings.HasPrefix(listen, "unix:@") }

// onUnix reports whether the listener is on a unix socket, as far as the file tells:
// what systemd passes may be one. onlyUnix reports whether it has no other address.
func (l *ListenerSection) onUnix() bool { return slices.ContainsFunc(l.Listen, isUnix) }

func (l *ListenerSection) onlyUnix() bool {
	return l.onUnix() && !slices.ContainsFunc(l.Listen, func(s string) bool { return !isUnix(s) })
}

func (l *ListenerSection) fromSystemd() bool { return slices.ContainsFunc(l.Listen, isSystemd) }

// listening names the addresses of the listener.
func (l *ListenerSection) listening() string { return strings.Join(l.Listen, ", ") }
