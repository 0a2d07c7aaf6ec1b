package carry

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/l4/unixsocket"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// sample is a state with a value in every kind of field.
func sample() *Handover {
	source := policy.SourceOf(netip.MustParseAddr("10.0.0.1"))
	uid := 7
	start := time.Unix(1_700_000_000, 123456789).UTC()
	return &Handover{From: "v1.2.3", Old: 9, Process: json.RawMessage(`{"a":1}`), Server: Server{
		Prefix: "ABCD-", Seq: 12,
		Sessions: []Session{
			{Seq: 11, Source: &source, Record: outcome.Record{Start: start, Listener: "pg", Client: "10.0.0.1:40000", Upstream: "db", Stage: outcome.StageRelay, UID: outcome.UserIDOf(0), Trace: &outcome.Trace{TraceID: outcome.TraceID{1}, SpanID: outcome.SpanID{2}}},
				Trace: &Trace{Parent: outcome.SpanID{3}, Sampled: true, Phases: []outcome.Phase{{Name: "dial", Address: "10.0.0.7:5432", Attempt: 1, To: time.Millisecond}}},
				Conn:  upstream.CarriedConn{Settled: true, Spoken: true},
				Flow: relay.Carried{Age: 50, LastUp: 40, LastDown: 45, Up: 10, Down: 20, Settled: true, FirstClose: relay.Downstream,
					Limits: relay.Limits{Idle: time.Minute},
					Sides:  [2]relay.CarriedSide{{FD: 20, Held: []byte("held for the client"), EOF: true, Passed: true}, {FD: 21, PipeRead: 22, PipeWrite: 23, PipeBytes: 4096}}}},
			{Seq: 12, Flow: relay.Carried{Sides: [2]relay.CarriedSide{{FD: 24}, {FD: 25, Held: []byte{0, 1, 2}}}}},
		},
		Parked:    []Parked{{Seq: 10, Record: outcome.Record{Start: start, Listener: "pg", Client: "[fe80::1%eth0]:40000"}, Listener: "127.0.0.1:5432", Remote: netip.MustParseAddrPort("[fe80::1%eth0]:40000"), FD: 26}},
		Ended:     []outcome.Record{{ID: "ABCD-9", Start: start, Reason: outcome.Shutdown}},
		Recent:    []outcome.Record{{ID: "ABCD-8", Start: start, Reason: outcome.Closed, Cause: "why"}},
		Traffic:   []Traffic{{"pg", "db", 100, 200}},
		Upstreams: []upstream.Memory{{Name: "db", Reached: &start}},
		Listeners: []Listener{{Key: "127.0.0.1:5432", Addr: "127.0.0.1:5432", FD: 10}, {Key: "unix:/s", Addr: "unix:/s", FD: 11, File: &unixsocket.File{Device: 1, Inode: 2, Mode: 0o600, UID: &uid}}},
	}}
}

func written(t testing.TB, h *Handover) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, h); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	want := sample()
	got, err := Read(written(t, want))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Another version is told, and where the old program is: the one that is asked goes back
// to it.
func TestAnotherVersion(t *testing.T) {
	b := written(t, sample())
	b[len(magic)+3]++
	h, err := Read(b)
	var version *VersionError
	if !errors.As(err, &version) || version.Got != Version+1 || h == nil || h.Old != 9 {
		t.Errorf("got %+v, %v", h, err)
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		change     func(*Handover)
	}{
		{"one descriptor twice", "appears twice", func(h *Handover) { h.Server.Sessions[1].Flow.Sides[0].FD = 20 }},
		{"a listener's descriptor twice", "appears twice", func(h *Handover) { h.Server.Listeners[0].FD = 20 }},
		{"a parked client's descriptor twice", "appears twice", func(h *Handover) { h.Server.Parked[0].FD = 20 }},
		{"a parked client after the last session", "the last one was", func(h *Handover) { h.Server.Parked[0].Seq = 13 }},
		{"standard error", "standard", func(h *Handover) { h.Server.Sessions[1].Flow.Sides[0].FD = 2 }},
		{"a session after the last", "the last one was", func(h *Handover) { h.Server.Seq = 11 }},
		{"TLS", "malformed state", func(h *Handover) { h.Server.Sessions[1].Flow.Sides[0].TLS = []byte("\x01secret") }},
		{"held twice", "both", func(h *Handover) { h.Server.Sessions[0].Flow.Sides[1].Held = []byte("x") }},
		{"passed on without a FIN", "has not come", func(h *Handover) { h.Server.Sessions[1].Flow.Sides[1].Passed = true }},
		{"negative bytes", "out of range", func(h *Handover) { h.Server.Sessions[1].Flow.Up = -1 }},
	} {
		h := sample()
		tt.change(h)
		if _, err := Read(written(t, h)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
	}
	whole := written(t, sample())
	for n := range len(whole) {
		if _, err := Read(whole[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes are taken for all", n, len(whole))
		}
	}
	if _, err := Read(append(whole, 0)); err == nil {
		t.Error("a byte too many is taken")
	}
}

// FuzzRead: whatever is read can be written and read again, and means the same.
func FuzzRead(f *testing.F) {
	f.Add(written(f, sample()))
	f.Add(written(f, &Handover{}))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Read(b)
		if err != nil {
			return
		}
		again, err := Read(written(t, h))
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		if len(again.Server.Sessions) != len(h.Server.Sessions) || !reflect.DeepEqual(again.Server.Descriptors(), h.Server.Descriptors()) {
			t.Fatalf("got %+v\nwant %+v", again, h)
		}
	})
}

// Sessions of many packs keep their order, and none may be malformed.
func TestPacks(t *testing.T) {
	h := &Handover{Server: Server{Seq: 3 * packSize}}
	for i := range 3*packSize - 1 {
		h.Server.Sessions = append(h.Server.Sessions, Session{Seq: uint64(i), Flow: relay.Carried{Sides: [2]relay.CarriedSide{{FD: 10 + 2*i}, {FD: 11 + 2*i}}}})
	}
	b := written(t, h)
	got, err := Read(b)
	if err != nil || !reflect.DeepEqual(got, h) {
		t.Errorf("%d sessions came back, or others, %v", len(got.Server.Sessions), err)
	}
	for _, seq := range []string{`[{"seq":0,`, `[{"seq":256,`, `[{"seq":512,`} {
		i := bytes.Index(b, []byte(seq))
		bad := bytes.Clone(b)
		bad[i] = '{'
		if _, err := Read(bad); err == nil {
			t.Errorf("a malformed pack at %s is taken", seq)
		}
		bad = bytes.Clone(b)
		bad[i-lengthSize] = 0xff
		if _, err := Read(bad); err == nil || !strings.Contains(err.Error(), "cut off") {
			t.Errorf("a wrong length at %s: %v", seq, err)
		}
	}
}
