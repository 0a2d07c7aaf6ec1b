package kubernetes

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

func readAll(path string) (string, error) {
	b, err := os.ReadFile(path)
	return string(b), err
}

func decoded[T any](t testing.TB, text string) *T {
	t.Helper()
	o := new(T)
	if err := json.Unmarshal([]byte(text), o); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestAddresses(t *testing.T) {
	const ports = `"addressType":"IPv4","ports":[{"name":"pg","protocol":"TCP","port":6432},{"name":"dns","protocol":"UDP","port":53}]`
	one := func(addr, conditions, hints string) string {
		return fmt.Sprintf(`{"addresses":[%q],"conditions":{%s},"hints":{%s}}`, addr, conditions, hints)
	}
	of := func(endpoints ...string) string {
		return `{` + ports + `,"endpoints":[` + strings.Join(endpoints, ",") + `]}`
	}
	const (
		ready       = `"ready":true,"serving":true,"terminating":false`
		unready     = `"ready":false,"serving":false,"terminating":false`
		terminating = `"ready":false,"serving":true,"terminating":true`
		ended       = `"ready":false,"serving":false,"terminating":true`
		zoneA       = `"forZones":[{"name":"a"}]`
		zoneB       = `"forZones":[{"name":"b"}]`
		onN1        = `"forZones":[{"name":"a"}],"forNodes":[{"name":"n1"}]`
	)
	tests := []struct {
		name, port string
		service    string // empty: there is none
		slices     []string
		want       string
	}{
		{"by number", "5432", theService, []string{slice("10.0.0.2", "10.0.0.1")}, "10.0.0.1:6432/2 10.0.0.2:6432/2"},
		{"by name", "pg", theService, []string{slice("10.0.0.1")}, "10.0.0.1:6432/2"},
		{"the pods' number is not the Service's", "6432", theService, []string{slice("10.0.0.1")}, "service default/db has no TCP port 6432; it has 5432 (pg)"},
		{"another name", "db", theService, []string{slice("10.0.0.1")}, "service default/db has no TCP port db; it has 5432 (pg)"},
		{"UDP only", "53", `{"spec":{"ports":[{"name":"dns","protocol":"UDP","port":53}]}}`, nil, "service default/db has no TCP port 53, and no other"},
		{"without a Service", "5432", "", []string{slice("10.0.0.1")}, "service default/db does not exist"},
		{"an alias", "5432", `{"spec":{"type":"ExternalName","externalName":"db.example.com"}}`, nil, `service default/db is an alias of "db.example.com", and has no endpoints; write that name and the port as the endpoint instead`},
		{"no EndpointSlice", "5432", theService, nil, "service default/db has no EndpointSlice: does its selector match any pod?"},
		{"no endpoint", "5432", theService, []string{of()}, "service default/db has no endpoint: does its selector match any pod?"},
		{"a port that no pod has", "5432", theService, []string{`{"addressType":"IPv4","ports":[{"name":"web","port":80}],"endpoints":[]}`}, "no EndpointSlice of service default/db has port 5432: does its targetPort name a port of the pods?"},
		{"ready ones only", "5432", theService, []string{of(one("10.0.0.1", ready, ""), one("10.0.0.2", unready, ""), one("10.0.0.3", terminating, ""))}, "10.0.0.1:6432/2"},
		{"unknown is ready", "5432", theService, []string{of(one("10.0.0.1", "", ""))}, "10.0.0.1:6432/2"},
		{"ready although it terminates", "5432", theService, []string{of(one("10.0.0.1", ready, ""), one("10.0.0.2", `"ready":true,"serving":true,"terminating":true`, ""))}, "10.0.0.1:6432/2"},
		{"all terminate", "5432", theService, []string{of(one("10.0.0.1", terminating, ""), one("10.0.0.2", ended, ""))}, "10.0.0.1:6432/2"},
		{"none is ready", "5432", theService, []string{of(one("10.0.0.1", unready, ""), one("10.0.0.2", ended, ""))}, "none of the 2 endpoints of service default/db is ready"},
		{"hints", "5432", theService, []string{of(one("10.0.0.1", ready, zoneB), one("10.0.0.2", ready, zoneA), one("10.0.0.3", ready, onN1))}, "10.0.0.3:6432/0 10.0.0.2:6432/1 10.0.0.1:6432/2"},
		{"in two slices", "5432", theService, []string{slice("10.0.0.1"), of(one("10.0.0.1", ready, zoneA)), of(one("10.0.0.1", unready, ""))}, "10.0.0.1:6432/1"},
		{"both families", "5432", theService, []string{slice("10.0.0.1"), `{"addressType":"IPv6","ports":[{"name":"pg","port":6432}],"endpoints":[{"addresses":["fd00::1"]}]}`}, "10.0.0.1:6432/2 [fd00::1]:6432/2/other"},
		{"IPv6 preferred", "5432", strings.Replace(theService, `"IPv4"`, `"IPv6","IPv4"`, 1), []string{slice("10.0.0.1"), `{"addressType":"IPv6","ports":[{"name":"pg","port":6432}],"endpoints":[{"addresses":["fd00::1"]}]}`}, "10.0.0.1:6432/2/other [fd00::1]:6432/2"},
		{"names are no addresses", "5432", theService, []string{`{"addressType":"FQDN","ports":[{"name":"pg","port":6432}],"endpoints":[{"addresses":["a.example"]}]}`}, "no EndpointSlice of service default/db has port 5432: does its targetPort name a port of the pods?"},
		{"bad addresses", "5432", theService, []string{of(one("0.0.0.0", ready, ""), one("224.0.0.1", ready, ""), one("x", ready, ""), `{"addresses":[]}`, one("10.0.0.1", ready, ""))}, "10.0.0.1:6432/2"},
		{"headless without ports", "7000", `{"spec":{"clusterIP":"None"}}`, []string{`{"addressType":"IPv4","ports":null,"endpoints":[{"addresses":["10.0.0.1"]}]}`}, "10.0.0.1:7000/2"},
		{"every port", "5432", theService, []string{`{"addressType":"IPv4","ports":[{"name":"pg"}],"endpoints":[{"addresses":["10.0.0.1"]}]}`}, "10.0.0.1:5432/2"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var svc *service
			if test.service != "" {
				svc = decoded[service](t, test.service)
			}
			all := map[string]*endpointSlice{}
			for i, text := range test.slices {
				all[fmt.Sprint(i)] = decoded[endpointSlice](t, text)
			}
			found, err := addresses(Service{"default", "db", test.port}, svc, all, here{zone: "a", node: "n1"})
			got := ""
			for _, a := range found {
				got += fmt.Sprintf(" %s/%d", a.Addr, a.Distance)
				if a.Other {
					got += "/other"
				}
			}
			if err != nil {
				got = " " + err.Error()
			}
			if got != " "+test.want {
				t.Errorf("got  %s\nwant  %s", got, test.want)
			}
		})
	}
}

func TestReferences(t *testing.T) {
	for text, want := range map[string]string{
		"default/db:5432":    "default/db:5432 db.default.svc",
		"a-b/c-1:pg":         "a-b/c-1:pg c-1.a-b.svc",
		"db:5432":            "the namespace is missing",
		"default/db":         "the port is missing",
		"Default/db:1":       `"Default" is no name of a namespace`,
		"default/db.x:1":     `"db.x" is no name of a Service`,
		"default/db:0":       `"0" is no port`,
		"default/db:99999":   `"99999" is no port`,
		"default/db:":        `"" is no port`,
		"default/a/b:1":      `"a/b" is no name of a Service`,
		"../x:1":             `".." is no name of a namespace`,
		"default/d?b=1:1":    `"d?b=1" is no name of a Service`,
		"default/db:pg_main": `"pg_main" is no port`,
	} {
		got := ""
		if s, err := ParseService(text); err != nil {
			got = err.Error()
		} else {
			got = s.String() + " " + s.Host()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	for text, ok := range map[string]bool{"default/client-tls": true, "default/a.b": true, "client": false, "default/": false, "/x": false, "default/a..b": false, "default/a/b": false} {
		if err := CheckSecret(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}
