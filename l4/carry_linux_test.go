package l4

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ambassador/l4/carry"
	"ambassador/l4/l4test"
	"ambassador/l4/limits"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
)

// TestThawParked: after an upgrade that has failed, a silent client can begin; it ends if
// its time is over, or if it was to end meanwhile.
func TestThawParked(t *testing.T) {
	parks(t)
	for _, tt := range []struct {
		name      string
		handshake time.Duration
		meanwhile func(f *fixture)
		reason    outcome.Reason
	}{
		{"it begins", time.Hour, func(*fixture) {}, outcome.Closed},
		{"its time is over", 200 * time.Millisecond, func(*fixture) { <-time.After(250 * time.Millisecond) }, outcome.HandshakeTimeout},
		{"it was to end", time.Hour, func(f *fixture) { f.stopAll(errShutdown) }, outcome.Shutdown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, cert, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
			cfg.Listeners[0].Timeouts.Handshake = tt.handshake
			f := serve(t, Options{}, cfg)
			c := f.client(0)
			f.until("it is parked", func() bool { return f.parked() == 1 })
			if n := f.Carriable(); n != (Carriable{Carried: 1}) {
				t.Errorf("before: %+v", n)
			}
			state, thaw, err := f.Freeze(t.Context())
			if err != nil || len(state.Parked) != 1 || state.Stopped != 0 {
				t.Fatalf("%+v, %v", state, err)
			}
			tt.meanwhile(f)
			thaw()
			if tt.reason == outcome.Closed {
				client := tls.Client(c, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}})
				ping(t, client)
				client.Close()
			}
			if r := f.record(); r.Reason != tt.reason {
				t.Errorf("record %+v, want %v", r, tt.reason)
			}
		})
	}
}

// Parked sessions of the program before were admitted there: the rate of new connections
// does not count them, limits.connections and per_client do.
func TestAdoptParked(t *testing.T) {
	parks(t)
	cfg, _, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].Timeouts.Handshake = time.Hour
	cfg.Listeners[0].Limits = limits.Limits{PerSecond: 1, PerClient: 3}
	f := serve(t, Options{}, cfg)
	near, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	const many = 3
	a := &adoption{server: f.Server}
	for i := range uint64(many) {
		far, err := net.Dial("tcp", near.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		c, err := near.Accept()
		if err != nil {
			t.Fatal(err)
		}
		file, err := c.(*net.TCPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Dup(int(file.Fd()))
		file.Close()
		c.Close()
		if err != nil {
			t.Fatal(err)
		}
		record := outcome.Record{Start: time.Now(), Listener: "in", Client: far.LocalAddr().String()}
		a.adoptParked(&carry.Parked{Seq: 1000 + i, Record: record, Listener: f.listeners[0].key, Remote: netconn.Unmapped(far.LocalAddr()), FD: fd})
	}
	for _, sess := range a.parked {
		sess.begin()
	}
	if n := f.parked(); n != many || a.lost != 0 {
		t.Errorf("%d are parked, %d lost", n, a.lost)
	}
	if n := f.LimitUses()[0].Used; n != many {
		t.Errorf("limits.connections counts %d", n)
	}
	if c, err := net.Dial("tcp", f.Listening()[0].Addr); err == nil { // it may be refused at once
		defer c.Close()
	}
	if r := f.record(); r.Reason != outcome.Limit || r.Limit != "listeners.in.limits.per_client" {
		t.Errorf("record %+v", r)
	}
}

// A session that was stopped while it was frozen is not carried over: Freeze fails.
func TestStopWhileFrozen(t *testing.T) {
	parks(t)
	cfg, _, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	f := serve(t, Options{}, cfg)
	f.client(0)
	f.until("it is parked", func() bool { return f.parked() == 1 })
	f.applying.Lock()
	z := &freezer{server: f.Server, state: &carry.Server{}, frozen: map[*session]bool{}}
	if !z.established() || len(z.frozen) != 1 {
		t.Fatalf("%d are frozen", len(z.frozen))
	}
	f.stopAll(errShutdown)
	err := z.describe()
	if z.thaw(); err == nil {
		t.Error("no error")
	}
	if r := f.record(); r.Reason != outcome.Shutdown {
		t.Errorf("record %+v", r)
	}
}
