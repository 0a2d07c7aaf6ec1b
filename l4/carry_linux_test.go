package l4

import (
	"crypto/tls"
	"testing"
	"time"

	"ambassador/l4/l4test"
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
