package relay

import (
	"net"
	"testing"
	"time"
)

// A session with bytes on their way has not been quiet since the bytes before them:
// where memory is short, the session that has been quiet for the longest time ends.
func TestBytesOnTheirWayEndTheQuiet(t *testing.T) {
	for d, from := range map[direction]Side{up: Downstream, down: Upstream} {
		s := &pumped{start: time.Now().Add(-time.Hour), budget: &Budget{}}
		if was, _ := s.Quiet(); was < time.Hour {
			t.Fatalf("quiet for %v before any byte", was)
		}
		s.hold(d)
		if was, last := s.Quiet(); was > time.Minute || last != from || s.Held() == 0 {
			t.Errorf("quiet for %v since bytes of %v, %d held", was, last, s.Held())
		}
		s.timer = time.NewTimer(time.Hour)
		for i := range s.legs {
			s.legs[i].raw, _ = net.Pipe()
		}
		s.Stop(nil)
		if n := s.budget.Used(); n != 0 || s.Held() != 0 {
			t.Errorf("at Stop, %d bytes are counted and %d held", n, s.Held())
		}
		s.release(d) // the pump returns later
		if n := s.budget.Used(); n != 0 || s.Held() != 0 {
			t.Errorf("after Stop, %d bytes are counted and %d held", n, s.Held())
		}
	}
}
