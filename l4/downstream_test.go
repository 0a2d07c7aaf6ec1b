package l4

import (
	"net"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"ambassador/l4/destination"
	"ambassador/l4/l4test"
	"ambassador/l4/peer"
	"ambassador/l4/preface"
	"ambassador/l4/request"
	"ambassador/policy"
)

// Every field that rules can match is filled in for some client: one on a unix socket,
// one by TCP, one that asks for a name, and one that asks for an address.
func TestQueryHasEveryField(t *testing.T) {
	near, _ := l4test.UnixPair(t)
	tcp, err := net.Dial("tcp", l4test.Backend(t, l4test.Echo))
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	unix := &downstream{conn: near, principal: "dns:app", request: &request.Request{Request: preface.Request{User: "batch"}}}
	unix.hello.ServerName = "db.test"
	who := peer.Of(near, false)
	unix.from = &who
	byTCP := &downstream{conn: tcp, from: &peer.Who{Lost: true}}
	filled := map[string]bool{}
	for _, q := range []policy.Query{
		unix.query(&destination.Destination{Host: "db.test", Port: 5432}),
		byTCP.query(&destination.Destination{Addr: netip.MustParseAddr("192.0.2.1"), Port: 5432}),
	} {
		v := reflect.ValueOf(q)
		for i := range v.NumField() {
			filled[v.Type().Field(i).Name] = filled[v.Type().Field(i).Name] || !v.Field(i).IsZero()
		}
	}
	unasked := []string{"UID"} // it is 0 where the tests run as root; HasUID says that it is known
	for name, is := range filled {
		if !is && !slices.Contains(unasked, name) {
			t.Errorf("policy.Query.%s: (*downstream).query fills it in for no client", name)
		}
	}
}
