package relay

import (
	"io"
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

// slowWriter is a connection whose Write returns after the answer was read.
type slowWriter struct {
	net.Conn
	answered chan struct{}
}

func (c *slowWriter) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	<-c.answered
	return n, err
}

// An answer comes after its question, also if the write of the question returns later.
func TestTheAnswerIsLast(t *testing.T) {
	client, downstream := net.Pipe()
	upstream, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	w := &slowWriter{upstream, make(chan struct{})}
	over := make(ended)
	s := (&portable{}).start(Config{Downstream: Leg{raw: downstream}, Upstream: Leg{raw: w}, Owner: over}, nil)
	go client.Write([]byte("question")) // ends with the session
	b := make([]byte, 8)
	io.ReadFull(server, b)
	go server.Write([]byte("answer")) // ends with the session
	io.ReadFull(client, b[:6])
	close(w.answered)
	s.Stop(nil)
	<-over // both directions have returned
	if _, last := s.Quiet(); last != Upstream || s.Up() != 8 || s.Down() != 6 {
		t.Errorf("%d and %d bytes, the last ones of %v", s.Up(), s.Down(), last)
	}
}

// ended is an Owner that is closed at the end.
type ended chan struct{}

func (ended) Settled()      {}
func (e ended) Done(Result) { close(e) }
