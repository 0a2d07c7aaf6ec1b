package outcome

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

func TestRecentKeepsTheLast(t *testing.T) {
	var r Recent
	for i := range recentRecords + 3 {
		r.Add(&Record{ID: fmt.Sprint(i)})
	}
	got := r.List(math.MaxInt)
	if len(got) != recentRecords || got[0].ID != fmt.Sprint(recentRecords+2) || got[len(got)-1].ID != "3" {
		t.Errorf("%d records, newest %s, oldest %s; want %d, %d, 3", len(got), got[0].ID, got[len(got)-1].ID, recentRecords, recentRecords+2)
	}
}

// Kept records do not keep the memory in which their strings were made, and records
// that were listed are not overwritten.
func TestRecentCopiesStrings(t *testing.T) {
	var r Recent
	cause := strings.Repeat("c", 3*recordText)
	for i := range 2 * recentRecords {
		id := fmt.Sprint(i)
		r.Add(&Record{ID: id, Client: id + "c", Destination: id + "d", Cause: id + "e"})
		if kept := r.List(1)[0].ID; kept != id {
			t.Fatalf("record %d has ID %q", i, kept)
		}
	}
	before := r.List(math.MaxInt)
	r.Add(&Record{ID: "long", Cause: cause})
	for i := range recentRecords {
		r.Add(&Record{ID: fmt.Sprint("x", i)})
	}
	for i, rec := range before {
		if id := fmt.Sprint(2*recentRecords - 1 - i); rec.ID != id || rec.Client != id+"c" || rec.Destination != id+"d" || rec.Cause != id+"e" {
			t.Fatalf("record %d is %+v", i, rec)
		}
	}
}
