package report

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

func record(destination string, verdict policy.Verdict, reason outcome.Reason) *outcome.Record {
	r := &outcome.Record{Listener: "egress", Rule: "trial", Verdict: string(verdict), VerdictReason: "not listed", Upstream: "net", Destination: destination, Reason: reason}
	if reason == outcome.Closed {
		r.Establish = 1
	}
	return r
}

func written(r Report) string {
	p := &output.Report{}
	r.WriteFlags(p)
	r.WriteRules(p)
	r.WriteOverflow(p)
	return p.String()
}

func TestReport(t *testing.T) {
	tally := New(time.Unix(1e9, 0))
	byUser := record("db.internal:5433", policy.WouldDeny, outcome.Closed)
	byUser.User = "batch"
	private := record("ca.internal:443", policy.WouldDeny, outcome.Closed)
	private.Address = "10.0.0.7:443"
	for _, r := range []*outcome.Record{
		byUser, record("db.internal:5432", policy.WouldDeny, outcome.Closed), record("db.internal:8080", policy.WouldDeny, outcome.Refused),
		record("[2001:4860::1]:443", policy.WouldDeny, outcome.Closed), record("8.8.8.8:443", policy.WouldDeny, outcome.Probe),
		record("10.0.0.7:80", policy.WouldDeny, outcome.SpecialAddress), record("inside.test:80", policy.WouldDeny, outcome.SpecialAddress), record("localhost:80", policy.WouldDeny, outcome.SpecialAddress), private,
		record("169.254.169.254:80", policy.WouldDeny, outcome.SpecialAddress), record("a b:1", policy.WouldDeny, outcome.DNS),
		record("allowed.internal:443", policy.Allow, outcome.Closed), record("denied.internal:443", policy.Deny, outcome.Denied), record("", policy.WouldDeny, outcome.BadGreeting),
	} {
		tally.Add(r)
	}
	live := record("live.internal:1", policy.WouldDeny, "")
	got := tally.Report(func() []outcome.Record { return []outcome.Record{*live} })
	want := `# --allow '10.0.0.7:80'  # private address; 1 session, 1 special_address
# --allow '169.254.169.254:80'  # metadata address; 1 session, 1 special_address
--allow '[2001:4860::1]:443'  # 1 session
--allow '8.8.8.8:443'  # 1 session
# --allow 'a b:1'  # 1 session, 1 dns
# --allow 'ca.internal:443'  # private address; 1 session
--allow 'db.internal:5432-5433'  # 2 sessions, user batch
--allow 'db.internal:8080'  # 1 session, 1 refused
# --allow 'inside.test:80'  # special address; 1 session, 1 special_address
--allow 'live.internal:1'  # 1 session
# --allow 'localhost:80'  # loopback address; 1 session, 1 special_address
# listener egress: rule trial would deny this: not listed
# - {ip: "10.0.0.7", port: 80, upstream: net}  # private address; 1 session, 1 special_address
# - {ip: "169.254.169.254", port: 80, upstream: net}  # metadata address; 1 session, 1 special_address
- {ip: "2001:4860::1", port: 443, upstream: net}  # 1 session
- {ip: "8.8.8.8", port: 443, upstream: net}  # 1 session
# - {host: "ca.internal", port: 443, upstream: net}  # private address; 1 session
- {host: "db.internal", port: 5432-5433, upstream: net}  # 2 sessions, user batch
- {host: "db.internal", port: 8080, upstream: net}  # 1 session, 1 refused
# - {host: "inside.test", port: 80, upstream: net}  # special address; 1 session, 1 special_address
- {host: "live.internal", port: 1, upstream: net}  # 1 session
# - {host: "localhost", port: 80, upstream: net}  # loopback address; 1 session, 1 special_address
`
	if diff := cmp.Diff(want, written(got)); diff != "" {
		t.Error(diff)
	}
	if again := tally.Report(nil); got.Allowed != 1 || len(again.Entries) != len(got.Entries)-1 {
		t.Errorf("allowed %d; %d entries, and %d with a live session", got.Allowed, len(again.Entries), len(got.Entries))
	}
}

// TestASessionThatEndsDuringTheReportCountsOnce: it is listed as open, and then added.
func TestASessionThatEndsDuringTheReportCountsOnce(t *testing.T) {
	tally := New(time.Now())
	one, other := record("db.internal:5432", policy.WouldDeny, ""), record("db.internal:5432", policy.WouldDeny, "")
	one.ID, other.ID = "A-1", "A-2"
	got := tally.Report(func() []outcome.Record {
		ended := *one
		ended.Reason = outcome.Closed
		tally.Add(&ended)
		return []outcome.Record{*one, *other}
	})
	if len(got.Entries) != 1 || got.Entries[0].Sessions != 2 {
		t.Errorf("%+v, want 2 sessions", got.Entries)
	}
	if again := tally.Report(nil); again.Entries[0].Sessions != 1 || tally.ended != nil {
		t.Errorf("afterwards: %+v, %d ids are kept", again.Entries, len(tally.ended))
	}
}

func TestReportIsBounded(t *testing.T) {
	tally := New(time.Now())
	for i := range maxDestinations + 5 {
		tally.Add(record(fmt.Sprintf("host-%d.internal:1", i), policy.WouldDeny, outcome.Closed))
	}
	tally.Add(record("host-7.internal:1", policy.WouldDeny, outcome.Closed))
	r := tally.Report(nil)
	if out := written(r); len(r.Entries) != maxDestinations || !strings.Contains(out, "--allow 'host-7.internal:1'  # 2 sessions\n") ||
		!strings.HasSuffix(out, "# and 5 sessions to more than 10000 destinations, which were not kept\n") {
		t.Errorf("%d destinations; %s", len(r.Entries), out[max(0, len(out)-300):])
	}
}
