package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ambassador/l4"
	"ambassador/policy"
)

func TestHealthOverHTTP(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/primary":
			io.WriteString(w, "yes")
		case "/moved":
			http.Redirect(w, r, "/primary", http.StatusFound)
		default:
			http.Error(w, "no", http.StatusServiceUnavailable)
		}
	}))
	defer s.Close()
	addr := netip.MustParseAddrPort(s.Listener.Addr().String())
	for _, tt := range []struct {
		section HTTPSection
		want    string // empty: well
	}{
		{HTTPSection{Path: "/primary", Status: 200}, ""},
		{HTTPSection{Path: "/standby", Status: 503}, ""},
		{HTTPSection{Path: "/standby", Status: 200}, "/standby answers 503 Service Unavailable, and 200 is wanted"},
		{HTTPSection{Path: "/moved", Status: 200}, "answers 302"},
		{HTTPSection{Path: "/primary", Status: 200, Port: 1}, "refused"},
	} {
		if tt.section.Port == 0 {
			tt.section.Port = int(addr.Port())
		}
		err := tt.section.ask(t.Context(), addr.Addr())
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.section, err, tt.want)
		}
	}
}

func TestResilienceReachesTheServer(t *testing.T) {
	upstream := func(more string) l4.UpstreamConfig {
		t.Helper()
		f, err := parse(good + more)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := f.serverConfig(nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return cfg.Upstreams[0]
	}
	u := upstream("")
	if u.Breaker != (policy.BreakerConfig{Failures: 5, Open: 5 * time.Second, MaxOpen: 30 * time.Second, Probes: 1}) || u.Balance != policy.RoundRobin ||
		u.Health.Interval != 5*time.Second || u.Health.Rise != 2 || u.Health.Fall != 3 || u.Health.Check != nil || u.Preconnect.Connections != 0 || u.MaxConnections != 0 {
		t.Errorf("defaults: %+v", u)
	}
	more := "    balance: least_connections\n    resolve: 10s\n    breaker: {failures: 0}\n    health: {interval: 1s, send: PING, expect: PONG, http: {port: 8008}, kill_on_down: true}\n" +
		"    preconnect: {connections: 4, max_age: 5s}\n    limits: {connections: 7}\n"
	v := upstream(more)
	if v.Balance != policy.LeastConnections || v.Resolve != 10*time.Second || v.Breaker.Failures != 0 || v.Health.Send != "PING" || v.Health.Expect != "PONG" || v.Health.Check == nil ||
		!v.Health.KillOnDown || v.Preconnect != (l4.PreconnectConfig{Connections: 4, MaxAge: 5 * time.Second}) || v.MaxConnections != 7 {
		t.Errorf("given: %+v", v)
	}
	if u.Key == v.Key || v.Key != upstream(more).Key || v.Key == upstream(strings.Replace(more, "8008", "8009", 1)).Key {
		t.Error("the key does not follow what the keys say")
	}
	f, err := parse(strings.Replace(good, `endpoints: ["h:1"]`, "srv: _pg._tcp.h", 1))
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := f.serverConfig(nil, nil, nil)
	if e := cfg.Upstreams[0].Endpoints; len(e) != 1 || e[0].Address != "srv:_pg._tcp.h" {
		t.Errorf("srv: %+v", e)
	}
}
