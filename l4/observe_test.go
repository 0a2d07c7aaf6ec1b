package l4

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unsafe"
)

func TestRecentKeepsTheLast(t *testing.T) {
	var r recent
	for i := range recentRecords + 3 {
		r.add(&Record{ID: fmt.Sprint(i)})
	}
	got := r.list()
	if len(got) != recentRecords || got[0].ID != fmt.Sprint(recentRecords+2) || got[len(got)-1].ID != "3" {
		t.Errorf("%d records, newest %s, oldest %s; want %d, %d, 3", len(got), got[0].ID, got[len(got)-1].ID, recentRecords, recentRecords+2)
	}
}

func TestSecondsInJSON(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0", 1500 * time.Millisecond: "1.5", 2 * time.Microsecond: "0.000002", 90 * time.Second: "90"} {
		b, err := json.Marshal(Seconds(d))
		if err != nil || string(b) != want {
			t.Errorf("%v in JSON is %s, %v; want %s", d, b, err, want)
		}
		var back Seconds
		if err := json.Unmarshal(b, &back); err != nil || time.Duration(back) != d {
			t.Errorf("%s reads back as %v, %v", b, back, err)
		}
	}
	var bad Seconds
	if err := json.Unmarshal([]byte(`"1s"`), &bad); err == nil {
		t.Error("a string passes as seconds")
	}
}

// Records keep nothing of where their strings were made, and nobody writes over
// those that somebody has listed.
func TestRecentCopiesStrings(t *testing.T) {
	var r recent
	cause := strings.Repeat("c", 3*recordText)
	for i := range 2 * recentRecords {
		id := fmt.Sprint(i)
		r.add(&Record{ID: id, Client: id + "c", Destination: id + "d", Cause: id + "e"})
		if kept := r.at(i % recentRecords).ID; kept != id || unsafe.StringData(kept) == unsafe.StringData(id) {
			t.Fatalf("record %d has ID %q, or that of the session", i, kept)
		}
	}
	before := r.list()
	r.add(&Record{ID: "long", Cause: cause})
	for i := range recentRecords {
		r.add(&Record{ID: fmt.Sprint("x", i)})
	}
	for i, rec := range before {
		if id := fmt.Sprint(2*recentRecords - 1 - i); rec.ID != id || rec.Client != id+"c" || rec.Destination != id+"d" || rec.Cause != id+"e" {
			t.Fatalf("record %d is %+v", i, rec)
		}
	}
}
