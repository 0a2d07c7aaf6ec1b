package cli

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/outcome"
)

func tellStories(t *testing.T, live, ended []outcome.Record) string {
	t.Helper()
	var out strings.Builder
	if err := writeStories(&out, stories(live, ended), len(live)+len(ended), cmdtest.Noon()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestWhyForPeople(t *testing.T) {
	f := cmdtest.NewFakeServer()
	want := `session K7QX-41: still open, in stage relay
  start        2026-11-23 11:59:00 UTC (1m0s ago)
  client       127.0.0.1:40000 on listener postgres
  upstream     orders_db, endpoint db1.internal:5432, address 10.0.0.1:5432
  attempts     1
  bytes        1.5 KiB up, 3.0 MiB down
  time         open for 1m0s, connected after 4.2ms
Nothing has gone wrong so far: bytes pass as they come; timeouts.idle and timeouts.lifetime of the listener bound it, if set.

session K7QX-40: upstream_tls_rejected, in stage tls
  start        2026-11-23 11:58:00 UTC (2m0s ago)
  client       127.0.0.1:39998 on listener postgres
  upstream     orders_db, endpoint db1.internal:5432, address 10.0.0.1:5432
  attempts     3
  cause        tls orders_db 10.0.0.1:5432: remote error: tls: certificate required
  bytes        0 B up, 0 B down
  time         ended after 1.2345s, never connected through
The server ended TLS with the alert in the cause: its log has its reason; what it verifies is our certificate (tls.identity, --cert), and tls.ca (--ca) has no part in that.

session K7QX-39: closed, in stage relay
  start        2026-11-22 10:00:00 UTC (1d2h ago)
  client       127.0.0.1:40000 on listener postgres
  upstream     orders_db, endpoint db1.internal:5432, address 10.0.0.1:5432
  attempts     1
  first close  downstream
  bytes        12 B up, 1023 B down; a TLS side ended without close_notify: last bytes may be missing, if the protocol has no end of its own
  time         ended after 1h0m0s, connected after 9ms
Nothing is to be done: both sides ended in good order; if it came too early, ask the side that closed first.
`
	if diff := cmp.Diff(want, tellStories(t, f.Live, f.Over)); diff != "" {
		t.Error(diff)
	}
}

func TestWhyOfASessionThatWasRefused(t *testing.T) {
	refused := outcome.Record{ID: "A-1", Start: cmdtest.Noon(), Listener: "in", Client: "unix:/run/in.sock", Stage: outcome.StageAdmit, Reason: outcome.Limit,
		Limit: "limits.connections", Cause: "2 sessions are open,\nand \x1b[31mlimits.connections is 2"}
	want := `session A-1: limit, in stage admit
  start        2026-11-23 12:00:00 UTC (0s ago)
  client       unix:/run/in.sock on listener in
  upstream     none chosen
  attempts     0
  cause        2 sessions are open,\nand \x1b[31mlimits.connections is 2
  limit        limits.connections
  bytes        0 B up, 0 B down
  time         ended after 0s, never connected through
` + outcome.Advice(outcome.Limit) + "\n"
	if diff := cmp.Diff(want, tellStories(t, nil, []outcome.Record{refused})); diff != "" {
		t.Error(diff)
	}
}

// A cause with a fix of its own is followed by that fix alone: the general advice
// would lead away from it.
func TestWhyOfACauseWithItsOwnFix(t *testing.T) {
	r := outcome.Record{ID: "A-1", Start: cmdtest.Noon(), Stage: outcome.StageTLS, Reason: outcome.UpstreamTLS,
		Cause: "the server's certificate expired", Hint: "renew it on the server"}
	out := tellStories(t, nil, []outcome.Record{r})
	if !strings.Contains(out, "cause        the server's certificate expired\n") || !strings.HasSuffix(out, "\nRenew it on the server.\n") {
		t.Error(out)
	}
	if strings.Contains(out, outcome.Advice(outcome.UpstreamTLS)) {
		t.Errorf("the general advice is there:\n%s", out)
	}
}

func TestWhyOfEgress(t *testing.T) {
	denied := outcome.Record{ID: "A-1", Start: cmdtest.Noon(), Listener: "egress", Client: "127.0.0.1:40000", User: "batch", Destination: "db.internal:5432", Rule: "#3", Tag: "job-7",
		Stage: outcome.StageRoute, Reason: outcome.Denied, Cause: "not on the list"}
	want := `session A-1: denied, in stage route
  start        2026-11-23 12:00:00 UTC (0s ago)
  client       127.0.0.1:40000 on listener egress, user batch
  destination  db.internal:5432
  rule         #3
  tag          job-7
  upstream     none chosen
  attempts     0
  cause        not on the list
  bytes        0 B up, 0 B down
  time         ended after 0s, never connected through
` + outcome.Advice(outcome.Denied) + "\n"
	if diff := cmp.Diff(want, tellStories(t, nil, []outcome.Record{denied})); diff != "" {
		t.Error(diff)
	}
}

func TestWhyTellsWhenABreakerLetsTheNextThrough(t *testing.T) {
	open := outcome.Record{ID: "A-1", Start: cmdtest.Noon(), Stage: outcome.StagePermit, Reason: outcome.BreakerOpen, RetryIn: outcome.Seconds(1852 * time.Millisecond)}
	if out := tellStories(t, nil, []outcome.Record{open}); !strings.Contains(out, "retry in     1.852s after its end\n") {
		t.Error(out)
	}
}

func TestWhyTellsTheNewestFirst(t *testing.T) {
	var ended []outcome.Record
	for _, id := range []string{"9", "8", "7", "6", "5", "4", "3"} {
		ended = append(ended, outcome.Record{ID: id, Reason: outcome.Closed, Start: cmdtest.Noon()})
	}
	out := tellStories(t, []outcome.Record{{ID: "10", Start: cmdtest.Noon()}, {ID: "11", Start: cmdtest.Noon()}}, ended)
	last := -1
	for _, id := range []string{"11", "10", "9", "8", "7"} {
		at := strings.Index(out, "session "+id+":")
		if at <= last {
			t.Errorf("session %s is not in its place:\n%s", id, out)
		}
		last = at
	}
	if strings.Contains(out, "session 6:") || !strings.HasSuffix(out, "\n4 older sessions not shown; `ambassador sessions --recent` lists all.\n") {
		t.Errorf("the end:\n%s", out)
	}
}

func TestWhyInJSON(t *testing.T) {
	f := cmdtest.NewFakeServer()
	var out strings.Builder
	if err := writeStoriesJSON(&out, stories(f.Live, f.Over)); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Sessions []struct {
			ID, Reason, Advice string
			Live               bool
			Duration           float64
		}
	}
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Sessions) != 3 || !got.Sessions[0].Live || got.Sessions[1].Reason != "upstream_tls_rejected" || got.Sessions[1].Live || got.Sessions[1].Duration != 1.2345 {
		t.Errorf("%+v", got)
	}
	for _, s := range got.Sessions {
		if s.Advice == "" {
			t.Errorf("no advice for %s", s.ID)
		}
	}
}

func TestEveryEndingIsTold(t *testing.T) {
	for _, reason := range outcome.Reasons() {
		out := tellStories(t, nil, []outcome.Record{{ID: "A-1", Start: cmdtest.Noon().Add(-time.Second), Stage: outcome.StageDial, Reason: reason}})
		if !strings.Contains(out, string(reason)) || !strings.HasSuffix(out, outcome.Advice(reason)+"\n") {
			t.Errorf("%s:\n%s", reason, out)
		}
	}
}

// Whatever an ambassador says of its sessions and upstreams, its commands print it
// without what speaks to a terminal.
func TestCommandsPrintWhatCanBeSeen(t *testing.T) {
	var status api.Status
	var record outcome.Record
	cmdtest.Fill(reflect.ValueOf(&status).Elem(), cmdtest.Evil)
	cmdtest.Fill(reflect.ValueOf(&record).Elem(), cmdtest.Evil)
	status.Readiness.Ready, status.Readiness.Draining = false, false
	record.Start = cmdtest.Noon()
	all := []outcome.Record{record}
	for what, write := range map[string]func(w *bytes.Buffer) error{
		"status":            func(w *bytes.Buffer) error { return writeStatus(w, status, cmdtest.Noon()) },
		"sessions":          func(w *bytes.Buffer) error { return writeSessions(w, all, false, cmdtest.Noon(), output.Screen{}) },
		"sessions --recent": func(w *bytes.Buffer) error { return writeSessions(w, all, true, cmdtest.Noon(), output.Screen{}) },
		"why":               func(w *bytes.Buffer) error { return writeStories(w, stories(nil, all), 1, cmdtest.Noon()) },
		"why --json":        func(w *bytes.Buffer) error { return writeStoriesJSON(w, stories(all, all)) },
		"status --json":     func(w *bytes.Buffer) error { return output.WriteJSON(w, status) },
		"an answer, as it was": func(w *bytes.Buffer) error {
			return output.WriteAnswer(w, []byte("{\"a\":\"\x9b\u202e\x7f\",\r\n\"b\": 1}"))
		},
	} {
		var out bytes.Buffer
		if err := write(&out); err != nil || out.Len() == 0 {
			t.Errorf("%s: %v, %q", what, err, &out)
		}
		cmdtest.MustBeVisible(t, what, out.String())
	}
	if err := output.WriteAnswer(&bytes.Buffer{}, []byte("\x1b[31mno JSON")); err == nil || !strings.Contains(err.Error(), `\x1b[31mno JSON`) {
		t.Errorf("an answer that is no JSON: %v", err)
	}
}
