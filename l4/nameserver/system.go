package nameserver

import (
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
)

const (
	resolvConf = "/etc/resolv.conf"
	maxServers = 3 // of resolv.conf, as for the C library
	// maxResolvConf bounds what is read, in bytes.
	maxResolvConf = 64 << 10
)

// systemServers lists the servers of /etc/resolv.conf, or those that are used without
// any there. Go's resolver asks them one after the other, 5 s each: two dead ones take
// all of the time that a session has. An empty name is the system's own resolver.
func systemServers() []string {
	if runtime.GOOS != "linux" {
		return []string{""}
	}
	var text []byte
	if f, err := os.Open(resolvConf); err == nil { // Go's resolver, too, goes on without it
		text, _ = io.ReadAll(io.LimitReader(f, maxResolvConf))
		f.Close()
	}
	return serversIn(string(text))
}

// serversIn returns the servers in the text of a resolv.conf(5).
func serversIn(text string) (servers []string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(servers) == maxServers {
			continue
		}
		if _, err := netip.ParseAddr(f[1]); err == nil {
			servers = append(servers, net.JoinHostPort(f[1], "53"))
		}
	}
	if len(servers) == 0 {
		return []string{"127.0.0.1:53", "[::1]:53"}
	}
	return servers
}
