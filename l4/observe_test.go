package l4

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"
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
