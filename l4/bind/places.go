package bind

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Place is where one socket of a listener is bound. An address of the configuration
// stands for one place or for several.
type Place struct {
	Address string // of the configuration; errors name it
	Key     string // the same for the same socket in every configuration
	// One of these is set.
	Unix string         // the path of a unix socket
	File *os.File       // a socket passed by systemd
	name string         // "NAME:PORT", which is looked up when it is bound
	tcp  netip.AddrPort // an IP address

	onlyIPv6 bool // of [::]: it does not accept IPv4
	Optional bool // the host may lack the address
}

// Listener has the addresses of one listener, as l4.ListenerConfig describes them.
type Listener struct {
	Name      string // for errors, and for ports that the system chooses
	Addresses []string
}

// Places returns the places of each listener. Two listeners have no place in common.
// Inherited are the sockets that systemd passed, by their names.
func Places(listeners []Listener, inherited map[string][]*os.File) ([][]Place, error) {
	all, taken := make([][]Place, len(listeners)), map[string]string{}
	for i, l := range listeners {
		for _, address := range l.Addresses {
			found, err := placesAt(address, inherited)
			if err != nil {
				return nil, fmt.Errorf("listener %s: %w", l.Name, err)
			}
			for _, p := range found {
				if p.tcp.IsValid() && p.tcp.Port() == 0 || strings.HasSuffix(p.name, ":0") {
					p.Key += " " + l.Name // the system chooses the port for this listener
				}
				switch holder, ok := taken[p.Key]; {
				case !ok:
					all[i], taken[p.Key] = append(all[i], p), l.Name
				case holder != l.Name:
					return nil, fmt.Errorf("listener %s: listen %s: listener %s has this address already; choose another", l.Name, address, holder)
				}
			}
		}
	}
	separateFamilies(all)
	return all, nil
}

// placesAt returns the places of an address.
func placesAt(address string, inherited map[string][]*os.File) ([]Place, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return []Place{{Address: address, Key: address, Unix: path}}, nil
	}
	if name, ok := strings.CutPrefix(address, "systemd:"); ok {
		return passed(address, name, inherited[name])
	}
	host, port, err := splitListen(address)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", address, err)
	}
	if host == "localhost" {
		return loopback(address, port), nil
	}
	if name, ok := strings.CutPrefix(host, "%"); ok {
		return onInterface(address, name, port)
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return []Place{{Address: address, Key: address, name: address}}, nil
	}
	return []Place{tcpPlace(address, ip, port)}, nil
}

// splitListen splits HOST:PORT. A port alone is that of localhost.
func splitListen(address string) (host string, port uint16, err error) {
	text := address
	if strings.Contains(address, ":") {
		if host, text, err = net.SplitHostPort(address); err != nil {
			return "", 0, err
		}
	} else {
		host = "localhost"
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%q is no port from 0 to 65535", text)
	}
	return host, uint16(n), nil
}

func tcpPlace(address string, ip netip.Addr, port uint16) Place {
	at := netip.AddrPortFrom(ip.Unmap(), port)
	return Place{Address: address, Key: at.String(), tcp: at}
}

// loopback returns the places of localhost: both families, as far as the host has them.
// A port that the system chooses is one of IPv4 alone: the other family may not have it.
func loopback(address string, port uint16) []Place {
	four := tcpPlace(address, netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	if port == 0 {
		return []Place{four}
	}
	six := tcpPlace(address, netip.IPv6Loopback(), port)
	four.Optional, six.Optional = true, true
	return []Place{four, six}
}

// onInterface returns the addresses that an interface has now.
func onInterface(address, name string, port uint16) (out []Place, err error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("listen %s: there is no network interface %q; `ip link` lists them", address, name)
	}
	addrs, err := i.Addrs()
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", address, err)
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		if !ok {
			continue
		}
		if ip = ip.Unmap(); ip.IsLinkLocalUnicast() && ip.Is6() {
			ip = ip.WithZone(name)
		}
		p := tcpPlace(address, ip, port)
		p.Optional = true // it may not be usable yet
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("listen %s: the network interface %s has no address; give it one, or start when it has one", address, name)
	}
	return out, nil
}

// passed returns the places of the sockets that systemd passed under name: a .socket unit
// has one for each ListenStream, and all of them have its FileDescriptorName.
func passed(address, name string, files []*os.File) (out []Place, err error) {
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: no socket of that name was passed; set FileDescriptorName=%s in the .socket unit", address, name)
	}
	for i, f := range files {
		out = append(out, Place{Address: address, Key: fmt.Sprintf("%s %d", address, i), File: f})
	}
	return out, nil
}

// separateFamilies restricts [::] to IPv6 if an IPv4 address with the same port is
// configured. Alone it accepts both families.
func separateFamilies(all [][]Place) {
	ports := map[uint16]bool{}
	for _, p := range slices.Concat(all...) {
		ports[p.tcp.Port()] = ports[p.tcp.Port()] || p.tcp.Addr().Is4()
	}
	for _, places := range all {
		for i := range places {
			p := &places[i]
			if p.tcp.Addr() == netip.IPv6Unspecified() && p.tcp.Port() != 0 && ports[p.tcp.Port()] {
				p.onlyIPv6 = true
				p.Key += " IPv6"
			}
		}
	}
}

// Sockets is how many sockets an address has at most, as far as its text tells.
func Sockets(address string) int {
	switch host, _, _ := splitListen(address); {
	case strings.HasPrefix(host, "%"):
		return interfaceSockets
	case host == "localhost":
		return 2
	}
	return 1
}

// interfaceSockets is how many addresses a network interface usually has.
const interfaceSockets = 4

// Reaches reports whether a connection to the address to reaches the socket that is
// bound to the address at.
func Reaches(to, at netip.AddrPort) bool {
	switch {
	case to.Port() != at.Port(), at.Addr().Is4() && to.Addr().Is6():
		return false
	case !at.Addr().IsUnspecified() && !to.Addr().IsUnspecified(): // connecting to 0.0.0.0 means connecting to this host
		return to.Addr() == at.Addr()
	case to.Addr().IsUnspecified() || to.Addr().IsLoopback():
		return true
	}
	local, err := net.InterfaceAddrs()
	for _, a := range local {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(to.Addr().AsSlice()) {
			return true
		}
	}
	return err != nil // if the interfaces are unknown, assume that it does: a refusal is better than a loop
}
