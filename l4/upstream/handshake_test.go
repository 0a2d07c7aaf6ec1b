package upstream

import (
	"crypto/tls"
	"testing"
	"time"

	"ambassador/l4/relay"
	"ambassador/l4/tlscause"
)

// over is the configuration of an upstream with TLS, which is never dialled.
func over(client *tls.Config) Config {
	return Config{Name: "u", Endpoints: []EndpointConfig{{Address: "127.0.0.1:1"}}, TLS: func(string, string) (*tls.Config, error) { return client, nil }}
}

// conn0 returns a connection to the only address of an upstream, before its handshake.
func conn0(t *testing.T, cfg Config) *Conn {
	t.Helper()
	u, err := New(cfg, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	m := u.members()[0]
	return &Conn{opening: &opening{}, upstream: u, candidate: candidate{endpoint: m.endpoint, at: m.Address}}
}

func TestResumptionIsOfferedAgainAfterAWhile(t *testing.T) {
	base := &tls.Config{ServerName: "localhost", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	base.ClientSessionCache.Put("localhost", &tls.ClientSessionState{})
	for _, c := range []struct {
		name     string
		starttls string
		probe    bool
		before   func(*tlsMemory)
		want     bool
	}{
		{name: "a new address", want: true},
		{name: "just refused", before: func(m *tlsMemory) { m.fullUntil.Store(int64(fullFor)) }},
		{name: "refused long ago", before: func(m *tlsMemory) { m.fullUntil.Store(int64(time.Minute)) }, want: true},
		{name: "an attempt that cannot be repeated", starttls: "mysql"},
		{name: "the same as a probe", starttls: "mysql", probe: true, want: true},
		{name: "the same after a probe", starttls: "mysql", before: func(m *tlsMemory) { m.resumes.Store(true) }, want: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := over(base)
			cfg.StartTLS = c.starttls
			conn := conn0(t, cfg)
			conn.candidate.probe = c.probe
			if c.before != nil {
				c.before(&conn.candidate.at.tls)
			}
			h := conn.handshake(base, conn.upstream.born.Add(2*time.Minute))
			if _, got := h.config.ClientSessionCache.Get("localhost"); got != c.want || h.offered != c.want {
				t.Errorf("offered: %v, recorded %v; want %v", got, h.offered, c.want)
			}
			if h.config != conn.handshake(base, conn.upstream.born.Add(2*time.Minute)).config {
				t.Error("two connections do not share their configuration")
			}
		})
	}
}

func TestChoiceIsForgotten(t *testing.T) {
	base := &tls.Config{ServerName: "localhost"}
	conn := conn0(t, over(base))
	start := conn.upstream.born
	conn.learn(conn.handshake(base, start), base, tls.ConnectionState{Version: tls.VersionTLS13, CurveID: tls.X25519}, start)
	for _, c := range []struct {
		at   time.Duration
		want int
	}{{time.Minute, len(tlscause.ClassicalCurves())}, {classicalFor + time.Second, 0}} {
		if got := conn.handshake(base, start.Add(c.at)).config.CurvePreferences; len(got) != c.want {
			t.Errorf("after %v: curves %v, want %d", c.at, got, c.want)
		}
	}
}

func TestAnswerThatMayBeLost(t *testing.T) {
	lost := relay.Result{End: relay.EndClosed, FirstClose: relay.Downstream, Up: 5}
	with := func(edit func(*relay.Result)) relay.Result {
		r := lost
		edit(&r)
		return r
	}
	for _, c := range []struct {
		name    string
		version uint16
		hold    bool
		r       relay.Result
		want    bool
	}{
		{"TLS 1.2", tls.VersionTLS12, false, lost, true},
		{"TLS 1.3", tls.VersionTLS13, false, lost, false},
		{"held back", tls.VersionTLS12, true, lost, false},
		{"answered", tls.VersionTLS12, false, with(func(r *relay.Result) { r.Down = 1 }), false},
		{"asked nothing", tls.VersionTLS12, false, with(func(r *relay.Result) { r.Up = 0 }), false},
		{"the server ended first", tls.VersionTLS12, false, with(func(r *relay.Result) { r.FirstClose = relay.Upstream }), false},
		{"a reset", tls.VersionTLS12, false, with(func(r *relay.Result) { r.End = relay.EndUpstreamReset }), false},
	} {
		base := &tls.Config{ServerName: "localhost"}
		cfg := over(base)
		cfg.HoldHalfClose = c.hold
		conn := conn0(t, cfg)
		now := conn.upstream.born
		conn.learn(conn.handshake(base, now), base, tls.ConnectionState{Version: c.version}, now)
		if got := conn.LostAnswer(c.r); (got != nil) != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
