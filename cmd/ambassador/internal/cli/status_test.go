package cli

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"ambassador/cmd/ambassador/internal/admin"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
)

// writeStatus is the status for people, as of now.
func writeStatus(w io.Writer, s api.Status, now time.Time) error {
	p := &page{output.Report{Now: now}}
	p.status(s)
	_, err := io.WriteString(w, p.String())
	return err
}

// writeSessions lists sessions for people.
func writeSessions(w io.Writer, all []outcome.Record, recent bool, now time.Time, screen output.Screen) error {
	p := &page{output.Report{Now: now, Screen: screen}}
	var list []listed
	for _, r := range all {
		list = append(list, listed{Record: r})
	}
	p.sessions(list, &sessionFlags{recent: recent, uid: -1})
	_, err := io.WriteString(w, p.String())
	return err
}

func fakeStatus(t *testing.T) api.Status {
	t.Helper()
	_, body := cmdtest.AskHandler(admin.NewHandler(fakeDeps(cmdtest.NewFakeServer()), admin.Guard{}), "GET", "/v1/status")
	var s api.Status
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	s.PID = 4711
	return s
}

func TestStatusForPeople(t *testing.T) {
	var out strings.Builder
	if err := writeStatus(&out, fakeStatus(t), cmdtest.Noon()); err != nil {
		t.Fatal(err)
	}
	want := `ready, but orders_db: 1 of 2 addresses unreachable
ambassador v0.1.0 (pid 4711), up 3h12m since 2026-11-23 08:48:00 UTC

LISTENER  ADDRESS         UPSTREAM  OPEN  FAILED/MIN
postgres  127.0.0.1:5432  -         1     0
inbound   0.0.0.0:6432    -         0     0
inbound: TLS starttls postgres as orders; client required: spiffe://corp/batch/*, dns:*.svc

UPSTREAM   ENDPOINT           ADDRESS        STATE                             OPEN  PRECONN
orders_db  db1.internal:5432  10.0.0.1:5432  healthy for 1h0m                  1     2
orders_db  db2.internal:5432  10.0.0.2:5432  breaker open, next attempt in 4s  0     0
mail       mail.internal:25   -              not tried yet                     -     -
10.0.0.2:5432 10s ago: dial orders_db 10.0.0.2:5432: connect: connection refused

IDENTITY  SUBJECT                              EXPIRES           LEFT   RENEWAL   STATE
orders    dns:orders.svc spiffe://corp/orders  2026-12-01 04:00  7d16h  in 5h10m  ok, but the last load failed
orders: load client.crt: no such file or directory

1 session open, 1.5 KiB up and 3.0 MiB down since the start
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestStatusOfEgress(t *testing.T) {
	s := api.Status{Version: "v0.1.0", Started: cmdtest.Noon(), Loaded: cmdtest.BeforeNoon(time.Minute), Readiness: l4.Readiness{Ready: true},
		Listeners: []api.Listener{{ListenerStatus: l4.ListenerStatus{Bound: l4.Bound{Name: "egress", Addr: "127.0.0.1:1080"}}, Rules: 12, Sessions: 3, Failures: 7}, {ListenerStatus: l4.ListenerStatus{Bound: l4.Bound{Name: "postgres", Addr: "127.0.0.1:5432"}}, Upstream: "mail"}},
		Upstreams: []upstream.Status{
			{Name: "internet", Dynamic: true, Active: 3, Destinations: 41, Breakers: map[string]int{"closed": 40, "open": 1},
				Endpoints: []upstream.EndpointStatus{{Endpoint: "dead.example:443", LastReason: outcome.Refused, LastFailure: cmdtest.BeforeNoon(time.Minute), LastError: "dial: refused"}}},
			{Name: "partners", Dynamic: true, IdentityError: "expired"}},
		UsersFiles: []api.UsersFile{{File: "/etc/users", Users: 2, Loaded: cmdtest.Noon()},
			{File: "/etc/others", Users: 1, Loaded: cmdtest.Noon(), LastError: "/etc/others: line 3: bad", LastErrorAt: cmdtest.BeforeNoon(time.Minute)}}}
	var out strings.Builder
	if err := writeStatus(&out, s, cmdtest.Noon()); err != nil {
		t.Fatal(err)
	}
	want := `ready, but partners: no_identity
ambassador v0.1.0 (pid 0), up 0s since 2026-11-23 12:00:00 UTC
configuration loaded 1m0s ago, at 2026-11-23 11:59:00 UTC, at the start

LISTENER  ADDRESS         UPSTREAM  OPEN  FAILED/MIN
egress    127.0.0.1:1080  12 rules  3     7
postgres  127.0.0.1:5432  mail      0     0

UPSTREAM  ENDPOINT          ADDRESS  STATE                                  OPEN  PRECONN
internet  dynamic           -        41 destinations, 1 breaker not closed  3     -
internet  dead.example:443  -        refused 1m0s ago                       -     -
partners  dynamic           -        no_identity                            0     -
dead.example:443 1m0s ago: dial: refused
partners: expired

USERS FILE   USERS  LOADED                   STATE
/etc/users   2      2026-11-23 12:00:00 UTC  ok
/etc/others  1      2026-11-23 12:00:00 UTC  the old users are in use; the file could not be read 1m0s ago: /etc/others: line 3: bad

0 sessions open, 0 B up and 0 B down since the start
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestStatusWhenNotReady(t *testing.T) {
	s := fakeStatus(t)
	s.Listeners, s.Upstreams, s.Identities = nil, nil, []api.Identity{{Name: "a", Subject: "CN=a", LastError: "open a.crt: no such file or directory"}}
	s.Readiness = l4.Readiness{Draining: true, Waiting: []string{"draining"}}
	var out strings.Builder
	if err := writeStatus(&out, s, cmdtest.Noon()); err != nil {
		t.Fatal(err)
	}
	want := `draining, not ready
ambassador v0.1.0 (pid 4711), up 3h12m since 2026-11-23 08:48:00 UTC

No listener accepts connections.

IDENTITY  SUBJECT  EXPIRES  LEFT  RENEWAL  STATE
a         CN=a     -        -     -        not ready
a: open a.crt: no such file or directory

1 session open, 1.5 KiB up and 3.0 MiB down since the start
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestSessionsForPeople(t *testing.T) {
	f := cmdtest.NewFakeServer()
	var out strings.Builder
	err := errors.Join(writeSessions(&out, f.Live, false, cmdtest.Noon(), output.Screen{}), writeSessions(&out, f.Over, true, cmdtest.Noon(), output.Screen{}),
		writeSessions(&out, nil, false, cmdtest.Noon(), output.Screen{}), writeSessions(&out, nil, true, cmdtest.Noon(), output.Screen{}))
	if err != nil {
		t.Fatal(err)
	}
	want := `ID       START                    CLIENT           LISTENER  UPSTREAM   ADDRESS        STAGE  UP       DOWN     TIME
K7QX-41  2026-11-23 11:59:00 UTC  127.0.0.1:40000  postgres  orders_db  10.0.0.1:5432  relay  1.5 KiB  3.0 MiB  1m0s
ID       START                    CLIENT           LISTENER  UPSTREAM   ADDRESS        STAGE  UP    DOWN    TIME    REASON                 CAUSE
K7QX-40  2026-11-23 11:58:00 UTC  127.0.0.1:39998  postgres  orders_db  10.0.0.1:5432  tls    0 B   0 B     1.235s  upstream_tls_rejected  tls orders_db 10.0.0.1:5432: remote error: tls: certificate required
K7QX-39  2026-11-22 10:00:00 UTC  127.0.0.1:40000  postgres  orders_db  10.0.0.1:5432  relay  12 B  1023 B  1h0m    closed                 -
No session is open. ` + "`ambassador sessions --recent`" + ` lists those that have ended.
No session has ended yet.
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestSessionsOfEgress(t *testing.T) {
	all := []outcome.Record{{ID: "A-1", Start: cmdtest.Noon(), Client: "127.0.0.1:40000", Listener: "egress", Destination: "db.internal:5432", Stage: outcome.StageRoute, Reason: outcome.Denied},
		{ID: "A-2", Start: cmdtest.Noon(), Client: "127.0.0.1:40001", Listener: "postgres", Upstream: "db", Address: "10.0.0.1:5432", Stage: outcome.StageRelay, Reason: outcome.Closed}}
	var out strings.Builder
	if err := writeSessions(&out, all, true, cmdtest.Noon(), output.Screen{}); err != nil {
		t.Fatal(err)
	}
	want := `ID   START                    CLIENT           LISTENER  DESTINATION       UPSTREAM  ADDRESS        STAGE  UP   DOWN  TIME  REASON
A-1  2026-11-23 12:00:00 UTC  127.0.0.1:40000  egress    db.internal:5432  -         -              route  0 B  0 B   0s    denied
A-2  2026-11-23 12:00:00 UTC  127.0.0.1:40001  postgres  -                 db        10.0.0.1:5432  relay  0 B  0 B   0s    closed
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

// On a narrow terminal the list leaves out columns rather than the client's port.
func TestSessionsFitTheTerminal(t *testing.T) {
	f := cmdtest.NewFakeServer()
	f.Over[0].User, f.Over[0].Rule, f.Over[0].Tag, f.Over[0].Destination = "batch", "partners", "job-7", "a-rather-long-name.partner.example:5432"
	for _, width := range []int{80, 100, 160} {
		var out strings.Builder
		if err := writeSessions(&out, f.Over, true, cmdtest.Noon(), output.Screen{Width: width}); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("%d of %d columns: %s", n, width, line)
			}
		}
		if width >= 100 && !strings.Contains(out.String(), "CAUSE") || !strings.Contains(out.String(), "K7QX-40") || strings.Contains(out.String(), "START") != (width >= 120) {
			t.Errorf("%d columns:\n%s", width, &out)
		}
	}
}

func TestStatesInWords(t *testing.T) {
	p := &page{output.Report{Now: cmdtest.Noon()}}
	if got := p.endpointState(upstream.Status{IdentityError: "expired"}, upstream.EndpointStatus{LastReason: outcome.OK}); got != "no_identity" {
		t.Errorf("endpoint without our identity: %s", got)
	}
	since := cmdtest.BeforeNoon(20 * time.Second)
	for want, e := range map[string]upstream.EndpointStatus{
		"not tried yet|db: the name does not resolve, and its addresses stay: silent":                      {LookupError: "silent"},
		"dns 20s ago|db 20s ago: silent":                                                                   {LastReason: outcome.DNS, LastFailure: since, LastError: "silent", LookupError: "silent"},
		"ok 20s ago|db: the name has not existed for 20s, and its addresses will be dropped: no such host": {LastReason: outcome.OK, LastSuccess: since, LookupError: "no such host", GoneSince: since, Addresses: []upstream.AddressStatus{{Health: "healthy", Breaker: "closed"}}},
		"ok 20s ago|db: the name has not existed for 20s, and its addresses were dropped: no such host":    {LastReason: outcome.OK, LastSuccess: since, LookupError: "no such host", GoneSince: since},
	} {
		e.Endpoint = "db"
		if got := p.endpointState(upstream.Status{}, e) + "|" + strings.Join(p.errorsOf(upstream.Status{}, e), "|"); got != want {
			t.Errorf("%+v: %s, want %s", e, got, want)
		}
	}
	for want, st := range map[string]*l4.ListenerTLSStatus{
		"": nil, "as a, b; client none": {Identities: []string{"a", "b"}, Client: "none"}, "no_identity: expired": {Client: "none", IdentityError: "expired"},
	} {
		if got := listenerTLS(l4.ListenerStatus{TLS: st}); got != want {
			t.Errorf("%+v: %s, want %s", st, got, want)
		}
	}
	if got := p.In(*cmdtest.BeforeNoon(2 * time.Hour)); got != "expired 2h0m ago" {
		t.Errorf("past expiry: %s", got)
	}
	for _, tt := range []struct {
		id   api.Identity
		want string
	}{
		{api.Identity{Ready: true}, "ok"}, {api.Identity{}, "not ready"}, {api.Identity{Ready: true, Warnings: []string{"w"}}, "warning|w"}, {api.Identity{LastError: "x"}, "not ready|x"},
		{api.Identity{Ready: true, LastError: "x"}, "ok, but the last load failed|x"},
	} {
		state, why := identityState(tt.id)
		if got := strings.Join(append([]string{state}, why...), "|"); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.id, got, tt.want)
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 1500 * time.Millisecond: "1s", time.Minute: "1m0s", 90 * time.Second: "1m30s", time.Hour: "1h0m",
		3*time.Hour + 12*time.Minute + 5*time.Second: "3h12m", 24 * time.Hour: "1d0h", 400*24*time.Hour + 2*time.Hour: "400d2h",
	} {
		if got := output.Age(d); got != want {
			t.Errorf("age(%v) = %s, want %s", d, got, want)
		}
	}
}

func TestByteCount(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 1<<20 - 1: "1.0 MiB", 123 << 20: "123.0 MiB", 1000 << 20: "1000.0 MiB", 1<<63 - 1: "8.0 EiB"} {
		if got := output.Bytes(n); got != want {
			t.Errorf("byteCount(%d) = %s, want %s", n, got, want)
		}
	}
}
