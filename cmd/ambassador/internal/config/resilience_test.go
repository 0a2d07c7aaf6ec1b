package config

import (
	"strings"
	"testing"
	"time"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/l4"
	"ambassador/policy"
)

func TestResilienceReachesTheServer(t *testing.T) {
	upstream := func(more string) l4.UpstreamConfig {
		t.Helper()
		f, err := parse(cmdtest.Good + more)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := f.ServerConfig(noParts())
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
	f, err := parse(strings.Replace(cmdtest.Good, `endpoints: ["h:1"]`, "srv: _pg._tcp.h", 1))
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := f.ServerConfig(noParts())
	if e := cfg.Upstreams[0].Endpoints; len(e) != 1 || e[0].Address != "srv:_pg._tcp.h" {
		t.Errorf("srv: %+v", e)
	}
}
