package l4

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/unixsocket"
)

// A reload changes who may open a socket, and keeps the socket.
func TestReloadChangesModeAndOwnerOfASocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "in.sock")
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].Addresses = []string{"unix:" + path}
	f := serve(t, Options{}, cfg)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(l4test.Bound))
	ping(t, c)
	before := l4test.StatSocket(t, path)
	if before.Mode != 0o600 {
		t.Errorf("mode %o, want 0600", before.Mode)
	}

	want := before
	want.Mode = 0o660
	cfg.Listeners[0].Socket.Mode = want.Mode
	if os.Getuid() == 0 {
		want.UID, want.GID = 12345, 54321
		cfg.Listeners[0].Socket.UID, cfg.Listeners[0].Socket.GID = &want.UID, &want.GID
	}
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	if got := l4test.StatSocket(t, path); got != want {
		t.Errorf("after the reload %+v, want %+v", got, want)
	}
	ping(t, c)

	cfg.Listeners[0].Socket = unixsocket.Config{Mode: 0o640} // and the owner is the original one
	cfg.Listeners = append(cfg.Listeners, ListenerConfig{Name: "other", Addresses: []string{l4test.Backend(t, l4test.Echo)}, Upstream: "up"})
	if err := f.Apply(cfg); err == nil {
		t.Error("a port in use was taken")
	}
	if got := l4test.StatSocket(t, path); got != want {
		t.Errorf("after a reload that failed %+v, want %+v", got, want)
	}
	cfg.Listeners = cfg.Listeners[:1]
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	want = before
	want.Mode = 0o640
	if got := l4test.StatSocket(t, path); got != want {
		t.Errorf("after the third reload %+v, want %+v", got, want)
	}
}

func TestReloadDoesNotGuardTheFileOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "in.sock")
	cfg := oneUpstream("127.0.0.1:1")
	cfg.Listeners[0].Addresses = []string{"unix:" + path}
	f := serve(t, Options{}, cfg)
	os.Remove(path)
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Listeners[0].Socket.Mode = 0o666
	if err := f.Apply(cfg); err == nil || !strings.Contains(err.Error(), "a file that is no socket is there") {
		t.Errorf("Apply = %v", err)
	}
	if got := l4test.StatSocket(t, path); got.Mode != 0o600 {
		t.Errorf("the mode of another's file is %o", got.Mode)
	}
}
