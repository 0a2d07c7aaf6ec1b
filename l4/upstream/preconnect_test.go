package upstream

import (
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
)

// A MySQL server counts an unused preconnected connection as a failed client. Without
// sessions at most maxGreetings are made, and more only after a session.
func TestUnusedPreconnectedOfMySQL(t *testing.T) {
	for greeting, endless := range map[string]bool{l4test.MySQLHello: false, "220 mail\r\n": true} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeNet{began: time.Now(), answer: answers{"127.0.0.1:1": says(greeting)}}
			cfg := Config{Name: "u", Endpoints: endpointsOf("127.0.0.1:1"), Preconnect: PreconnectConfig{Connections: 4, MaxAge: 10 * time.Second}}
			u, err := New(cfg, Deps{Dial: f.dial})
			if err != nil {
				t.Fatal(err)
			}
			defer running(t, u)()
			p := &proved{u, f, t}
			for range 2 {
				before := p.dials()
				time.Sleep(time.Hour)
				if n := p.dials() - before; endless != (n > maxGreetings) || n < 4 {
					t.Errorf("%q: %d spares in an hour without a session", greeting, n)
				}
				p.session(outcome.OK)
			}
		})
	}
}
