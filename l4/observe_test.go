package l4

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

func TestRecentKeepsTheLast(t *testing.T) {
	var r recent
	all := func(*Record) bool { return true }
	for i := range recentRecords + 3 {
		r.add(&Record{ID: fmt.Sprint(i)})
	}
	got := r.list(all)
	if len(got) != recentRecords || got[0].ID != fmt.Sprint(recentRecords+2) || got[len(got)-1].ID != "3" {
		t.Errorf("%d records, newest %s, oldest %s; want %d, %d, 3", len(got), got[0].ID, got[len(got)-1].ID, recentRecords, recentRecords+2)
	}
}

func TestMatchClient(t *testing.T) {
	v4 := &Record{ID: "abcd-7", Client: "127.0.0.1:40000"}
	v6 := &Record{ID: "abcd-8", Client: "[::1]:40000"}
	mapped := &Record{ID: "abcd-9", Client: "[::ffff:10.0.0.1]:5"}
	local := &Record{ID: "abcd-10", Client: "unix:/run/x.sock"}
	for _, tt := range []struct {
		rec  *Record
		want string
		ok   bool
	}{
		{v4, "", true}, {v4, "127.0.0.1:40000", true}, {v4, "127.0.0.1", true}, {v4, "abcd-7", true},
		{v4, "127.0.0.1:40001", false}, {v4, "127.0.0.2", false}, {v4, "abcd-8", false}, {v4, "nonsense", false},
		{v6, "[::1]:40000", true}, {v6, "::1", true}, {v6, "127.0.0.1:40000", false},
		{mapped, "10.0.0.1:5", true}, {mapped, "10.0.0.1", true},
		{local, "unix:/run/x.sock", true}, {local, "127.0.0.1", false},
	} {
		if got := matchClient(tt.rec, tt.want); got != tt.ok {
			t.Errorf("matchClient(%s, %q) = %v, want %v", tt.rec.Client, tt.want, got, tt.ok)
		}
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
