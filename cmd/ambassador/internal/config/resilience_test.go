package config

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

func TestResilienceReachesTheServer(t *testing.T) {
	made := func(more string) upstream.Config {
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
	u := made("")
	if u.Breaker != (policy.BreakerConfig{Failures: 5, Open: 5 * time.Second, MaxOpen: 30 * time.Second, Probes: 1}) || u.Balance != policy.RoundRobin ||
		u.Health.Interval != 5*time.Second || u.Health.Rise != 2 || u.Health.Fall != 3 || u.Health.Check != nil || u.Preconnect.Connections != 0 || u.MaxConnections != 0 {
		t.Errorf("defaults: %+v", u)
	}
	more := "    balance: least_connections\n    resolve: 10s\n    breaker: {failures: 0}\n    health: {interval: 1s, send: PING, expect: PONG, http: {port: 8008}, kill_on_down: true}\n" +
		"    preconnect: {connections: 4, max_age: 5s}\n    limits: {connections: 7}\n"
	v := made(more)
	if v.Balance != policy.LeastConnections || v.Resolve != 10*time.Second || v.Breaker.Failures != 0 || v.Health.Send != "PING" || v.Health.Expect != "PONG" || v.Health.Check == nil ||
		!v.Health.KillOnDown || v.Preconnect != (upstream.PreconnectConfig{Connections: 4, MaxAge: 5 * time.Second}) || v.MaxConnections != 7 {
		t.Errorf("given: %+v", v)
	}
	if u.Resolve != 30*time.Second || u.KeepGone != 30*time.Second || v.KeepGone != 30*time.Second {
		t.Errorf("resolve: %v, %v; a duration alone: %v", u.Resolve, u.KeepGone, v.KeepGone)
	}
	if w := made("    resolve: {keep_gone: 0s}\n"); w.Resolve != 30*time.Second || w.KeepGone >= 0 {
		t.Errorf("keep_gone alone: %v, %v", w.Resolve, w.KeepGone)
	}
	if u.Key == v.Key || v.Key != made(more).Key || v.Key == made(strings.Replace(more, "8008", "8009", 1)).Key {
		t.Error("the key does not follow what the keys say")
	}
	if w := made("    balance: random\n"); w.StateKey != u.StateKey || w.Key == u.Key || w.StateKey == made("    balance: random\n    breaker: {failures: 1}\n").StateKey {
		t.Error("the state of addresses does not follow from what decides it")
	}
	if u.Health.OnFailure || !made("    health: {probe: on_failure}\n").Health.OnFailure {
		t.Error("probe: on_failure does not reach the upstream, or is the default")
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

// A reload replaces an upstream of which any key has changed, and keeps the others.
func TestEveryKeyOfAnUpstreamReplacesIt(t *testing.T) {
	load := func() (*File, *UpstreamSection) {
		f, err := parse(cmdtest.Good + "    tls: {}\n")
		if err != nil {
			t.Fatal(err)
		}
		return f, f.Upstreams[0]
	}
	f, u := load()
	was := f.upstreamKey(u)
	if again, same := load(); again.upstreamKey(same) != was {
		t.Error("an upstream that is unchanged is replaced")
	}
	n := 0
	var change func(path string, v reflect.Value)
	change = func(path string, v reflect.Value) {
		old := reflect.ValueOf(v.Interface())
		switch v.Kind() {
		case reflect.Pointer:
			change(path, v.Elem())
			return
		case reflect.Struct:
			for i := range v.NumField() {
				change(path+"."+v.Type().Field(i).Name, v.Field(i))
			}
			return
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Int, reflect.Int64:
			v.SetInt(v.Int() + 1)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), v.Len()+1, v.Len()+1))
		default:
			t.Fatalf("%s: a %s; teach this test to change one", path, v.Kind())
		}
		if n++; f.upstreamKey(u) == was {
			t.Errorf("%s has changed, and the upstream is kept", path)
		}
		v.Set(old)
	}
	change("upstream", reflect.ValueOf(u).Elem())
	if n < 35 {
		t.Errorf("%d keys were changed", n)
	}
	f.DNS.Servers = []string{"192.0.2.1"}
	if f.upstreamKey(u) == was {
		t.Error("the DNS servers have changed, and the upstream is kept")
	}
}
