package l4

import (
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"ambassador/l4/outcome"
)

func TestRecentKeepsTheLast(t *testing.T) {
	var r recent
	for i := range recentRecords + 3 {
		r.add(&outcome.Record{ID: fmt.Sprint(i)})
	}
	got := r.list()
	if len(got) != recentRecords || got[0].ID != fmt.Sprint(recentRecords+2) || got[len(got)-1].ID != "3" {
		t.Errorf("%d records, newest %s, oldest %s; want %d, %d, 3", len(got), got[0].ID, got[len(got)-1].ID, recentRecords, recentRecords+2)
	}
}

// Kept records do not keep the memory in which their strings were made, and records
// that were listed are not overwritten.
func TestRecentCopiesStrings(t *testing.T) {
	var r recent
	cause := strings.Repeat("c", 3*recordText)
	for i := range 2 * recentRecords {
		id := fmt.Sprint(i)
		r.add(&outcome.Record{ID: id, Client: id + "c", Destination: id + "d", Cause: id + "e"})
		if kept := r.at(i % recentRecords).ID; kept != id || unsafe.StringData(kept) == unsafe.StringData(id) {
			t.Fatalf("record %d has ID %q, or that of the session", i, kept)
		}
	}
	before := r.list()
	r.add(&outcome.Record{ID: "long", Cause: cause})
	for i := range recentRecords {
		r.add(&outcome.Record{ID: fmt.Sprint("x", i)})
	}
	for i, rec := range before {
		if id := fmt.Sprint(2*recentRecords - 1 - i); rec.ID != id || rec.Client != id+"c" || rec.Destination != id+"d" || rec.Cause != id+"e" {
			t.Fatalf("record %d is %+v", i, rec)
		}
	}
}
