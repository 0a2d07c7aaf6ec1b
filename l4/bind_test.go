package l4

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ambassador/l4/bind"
	"ambassador/l4/l4test"
	"ambassador/l4/unixsocket"
	"ambassador/l4/upstream"
)

// freePort is a port that no socket of this host has.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
}

// needIPv6 skips a test on a host without IPv6.
func needIPv6(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("this host has no IPv6")
	}
	ln.Close()
}

// reached returns which of the loopback addresses accept a connection at the port.
func reached(t *testing.T, port string) (out []string) {
	t.Helper()
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "::1"} {
		c, err := net.Dial("tcp", net.JoinHostPort(host, port))
		switch {
		case err == nil:
			c.SetDeadline(time.Now().Add(l4test.Bound))
			ping(t, c)
			c.Close()
			out = append(out, host)
		case !errors.Is(err, syscall.ECONNREFUSED):
			t.Error(err)
		}
	}
	return out
}

// What an address of a listener means: where it is bound, and who reaches it.
func TestListenAddresses(t *testing.T) {
	needIPv6(t)
	up := l4test.Backend(t, l4test.Echo)
	four, six, all := []string{"127.0.0.1", "127.0.0.2"}, []string{"::1"}, []string{"127.0.0.1", "127.0.0.2", "::1"}
	for _, c := range []struct {
		listen  []string // without the port
		bound   []string
		reached []string
	}{
		{[]string{"127.0.0.1:"}, []string{"127.0.0.1"}, four[:1]},
		{[]string{"0.0.0.0:"}, []string{"0.0.0.0"}, four},
		{[]string{"[::1]:"}, []string{"::1"}, six},
		{[]string{"[::]:"}, []string{"::"}, all},
		{[]string{"[::]:", "0.0.0.0:"}, []string{"::", "0.0.0.0"}, all},
		{[]string{"[::]:", "127.0.0.2:"}, []string{"::", "127.0.0.2"}, []string{"127.0.0.2", "::1"}},
		{[]string{"127.0.0.1:", "[::1]:"}, []string{"127.0.0.1", "::1"}, []string{"127.0.0.1", "::1"}},
		{[]string{"localhost:"}, []string{"127.0.0.1", "::1"}, []string{"127.0.0.1", "::1"}},
		{[]string{""}, []string{"127.0.0.1", "::1"}, []string{"127.0.0.1", "::1"}},
		{[]string{"127.0.0.1:", "localhost:"}, []string{"127.0.0.1", "::1"}, []string{"127.0.0.1", "::1"}},
		{[]string{"%" + loopbackInterface(t) + ":"}, []string{"127.0.0.1", "::1"}, []string{"127.0.0.1", "::1"}},
		{[]string{"[::ffff:127.0.0.1]:"}, []string{"127.0.0.1"}, four[:1]},
	} {
		port, cfg := freePort(t), oneUpstream(up)
		cfg.Listeners[0].Addresses, cfg.Listeners[0].UnsafePlaintextListen = nil, true
		for _, l := range c.listen {
			cfg.Listeners[0].Addresses = append(cfg.Listeners[0].Addresses, l+port)
		}
		f := serve(t, Options{}, cfg)
		var got []string
		for _, b := range f.Listening() {
			at := netip.MustParseAddrPort(b.Addr)
			got = append(got, at.Addr().String())
			if b.Name != "in" || strconv.Itoa(int(at.Port())) != port {
				t.Errorf("%v: %+v, want port %s", c.listen, b, port)
			}
		}
		if !slices.Equal(got, c.bound) {
			t.Errorf("%v: bound to %v, want %v", c.listen, got, c.bound)
		}
		if got := reached(t, port); !slices.Equal(got, c.reached) {
			t.Errorf("%v: reached at %v, want %v", c.listen, got, c.reached)
		}
		f.cancel()
	}
}

func loopbackInterface(t *testing.T) string {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(i net.Interface) bool { return i.Flags&net.FlagLoopback != 0 })
	if i < 0 {
		t.Skip("this host has no loopback interface")
	}
	return all[i].Name
}

func TestListenErrors(t *testing.T) {
	for _, c := range []struct{ listen, want string }{
		{"%none0:1", `listen %none0:1: there is no network interface "none0"`},
		{"127.0.0.1:70000", `"70000" is no port`},
		{"systemd:x", "systemd:x: no socket of that name was passed"},
		{l4test.Backend(t, l4test.Echo), "the address is in use"},
		{"0.0.0.0:0", "unsafe_plaintext_listen"},
	} {
		cfg := oneUpstream("127.0.0.1:1")
		cfg.Listeners[0].Addresses = []string{"127.0.0.1:0", c.listen}
		s := New(t.Context(), Options{})
		if err := s.Apply(cfg); err == nil || !strings.Contains(err.Error(), "listener in: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.listen, err, c.want)
		}
		if got := s.Listening(); got != nil {
			t.Errorf("%s: %v is left", c.listen, got)
		}
	}
	port := freePort(t)
	cfg := oneUpstream("127.0.0.1:1")
	cfg.Listeners[0].Addresses = []string{"127.0.0.1:" + port}
	cfg.Listeners = append(cfg.Listeners, ListenerConfig{Name: "other", Addresses: []string{port}, Upstream: "up"})
	if err := New(t.Context(), Options{}).Apply(cfg); err == nil || !strings.Contains(err.Error(), "listener in has this address already") {
		t.Errorf("an address of two listeners: %v", err)
	}
}

// A reload may change only the host part of an address: the port is ours. No other
// process can take the port afterwards.
func TestReloadOfTheHostPart(t *testing.T) {
	needIPv6(t)
	port, up := freePort(t), l4test.Backend(t, l4test.Echo)
	cfg := oneUpstream(up)
	cfg.Listeners[0].UnsafePlaintextListen = true
	apply := func(f *fixture, hosts ...string) error {
		next := cfg
		next.Listeners = slices.Clone(cfg.Listeners)
		next.Listeners[0].Addresses = nil
		for _, h := range hosts {
			next.Listeners[0].Addresses = append(next.Listeners[0].Addresses, h+port)
		}
		return f.Apply(next)
	}
	cfg.Listeners[0].Addresses = []string{"127.0.0.1:" + port}
	f := serve(t, Options{}, cfg)
	live := f.client(0)
	ping(t, live)
	for _, c := range []struct {
		hosts, want []string
	}{
		{[]string{"0.0.0.0:"}, []string{"127.0.0.1", "127.0.0.2"}},
		{[]string{"[::]:"}, []string{"127.0.0.1", "127.0.0.2", "::1"}},
		{[]string{"[::]:", "0.0.0.0:"}, []string{"127.0.0.1", "127.0.0.2", "::1"}},
		{[]string{"localhost:"}, []string{"127.0.0.1", "::1"}},
		{[]string{"[::]:"}, []string{"127.0.0.1", "127.0.0.2", "::1"}},
		{[]string{"127.0.0.2:"}, []string{"127.0.0.2"}},
		{[]string{"127.0.0.1:"}, []string{"127.0.0.1"}},
	} {
		if err := apply(f, c.hosts...); err != nil {
			t.Fatalf("%v: %v", c.hosts, err)
		}
		if got := reached(t, port); !slices.Equal(got, c.want) {
			t.Errorf("%v: reached at %v, want %v", c.hosts, got, c.want)
		}
		if ln, err := bind.ListenTCP(t.Context(), f.Listening()[0].Addr); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%v: another process takes the port: %v", c.hosts, err)
			ln.Close()
		}
		ping(t, live)
	}
	cfg.Listeners = append(cfg.Listeners, ListenerConfig{Name: "other", Addresses: []string{up}, Upstream: "up"})
	if err := apply(f, "0.0.0.0:"); err == nil || !strings.Contains(err.Error(), "listener other") {
		t.Errorf("a port in use: %v", err)
	}
	if got := reached(t, port); !slices.Equal(got, []string{"127.0.0.1"}) {
		t.Errorf("after a reload that failed: reached at %v", got)
	}
}

// A port that another process holds stays in use, whatever we give up in the same reload.
func TestReloadTakesNoPortOfOthers(t *testing.T) {
	taken, port := l4test.Backend(t, l4test.Echo), freePort(t)
	cfg := oneUpstream(taken)
	cfg.Listeners[0].Addresses = []string{"127.0.0.1:" + port}
	f := serve(t, Options{}, cfg)
	cfg.Listeners = slices.Clone(cfg.Listeners)
	cfg.Listeners[0].Addresses = []string{taken}
	if err := f.Apply(cfg); err == nil || !strings.Contains(err.Error(), "the address is in use") {
		t.Errorf("Apply = %v", err)
	}
}

// The sockets of a listener share its limits, which a reload keeps.
func TestSocketsShareTheLimits(t *testing.T) {
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].Addresses = []string{"127.0.0.1:" + freePort(t), "127.0.0.2:" + freePort(t)}
	cfg.Listeners[0].Limits.Connections = 1
	f := serve(t, Options{}, cfg)
	live := f.client(0)
	ping(t, live)
	for range 2 {
		if c, err := net.Dial("tcp", f.Listening()[1].Addr); err == nil { // else the reset was faster
			wantReset(t, c)
			c.Close()
		}
		if r := f.record(); r.Limit != "listeners.in.limits.connections" {
			t.Errorf("record %+v", r)
		}
		next := cfg
		next.Listeners = slices.Clone(cfg.Listeners)
		next.Listeners[0].Addresses = slices.Clone(cfg.Listeners[0].Addresses)
		slices.Reverse(next.Listeners[0].Addresses)
		if err := f.Apply(next); err != nil {
			t.Fatal(err)
		}
		slices.Reverse(cfg.Listeners[0].Addresses)
	}
}

func TestAbstractSocket(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has abstract sockets")
	}
	name := "@ambassador-" + freePort(t)
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].Addresses = []string{"unix:" + name}
	f := serve(t, Options{}, cfg)
	cfg.Upstreams = append(cfg.Upstreams, upstream.Config{Name: "abstract", Endpoints: endpointsAt("unix:" + name)})
	cfg.Listeners = append(cfg.Listeners, ListenerConfig{Name: "through", Addresses: []string{"127.0.0.1:0"}, Upstream: "abstract"})
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	if got := f.Listening()[0].Addr; got != "unix:"+name {
		t.Errorf("bound to %s", got)
	}
	ping(t, f.client(1))
	if r := f.Ready(); !r.Ready {
		t.Errorf("%+v", r)
	}
	if _, err := unixsocket.Listen(t.Context(), name, unixsocket.Config{}); err == nil || !strings.Contains(err.Error(), "in use by a running process") {
		t.Errorf("another socket of that name: %v", err)
	}
}

// A unix socket whose file is gone is told by readiness, and made anew by a reload.
func TestLostUnixSocket(t *testing.T) {
	path := filepath.Join(l4test.ShortFolder(t), "s")
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].Addresses = []string{"unix:" + path}
	f := serve(t, Options{}, cfg)
	dial := func() *net.UnixConn {
		t.Helper()
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(l4test.Bound))
		ping(t, c)
		return c.(*net.UnixConn)
	}
	live := dial()
	f.until("readiness", func() bool { return f.Ready().Ready })
	for what, lose := range map[string]func() error{
		"removed":  func() error { return os.Remove(path) },
		"replaced": func() error { os.Remove(path); return syscall.Mknod(path, syscall.S_IFSOCK|0o666, 0) },
	} {
		if err := lose(); err != nil {
			t.Fatal(err)
		}
		if r := f.Ready(); r.Ready || len(r.Waiting) != 1 || !strings.Contains(r.Waiting[0], "listener in: the file of unix:"+path) {
			t.Errorf("%s: %+v", what, r)
		}
		if err := f.Apply(cfg); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if r := f.Ready(); !r.Ready {
			t.Errorf("%s, after a reload: %+v", what, r)
		}
		dial()
		ping(t, live)
	}
}
