package otlp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"ambassador/certs"
	"ambassador/l4/outcome"
)

// signal is one of the two forms in which sessions are sent, with its queue. Each has its
// own, so that a collector which refuses one gets the other.
type signal struct {
	// Static after construction.
	name     string
	log      *slog.Logger
	exporter *Exporter
	headers  http.Header
	queue    chan *outcome.Record
	encode   func([]*outcome.Record) any // the request that sends them

	url     atomic.Pointer[string] // nil: nothing is sent
	dropped atomic.Int64
	unsent  atomic.Int64 // sessions in queue, and in the request that is being made
	queued  atomic.Int64 // the sum of sizeOf of the sessions in queue
	failing bool         // owned by run; the last request failed, and the log says it
}

// sizeOf is about how many bytes a session takes, in memory and as JSON.
func sizeOf(r *outcome.Record) int64 {
	const fields, perPhase = 2 << 10, 768
	size := fields + len(r.Cause) + len(r.Hint) + len(r.VerdictReason) + len(r.User) + len(r.Principal) + len(r.Destination) + len(r.Tag)
	if r.Trace != nil {
		for i := range r.Phases {
			size += perPhase + len(r.Phases[i].Address) + len(r.Phases[i].Cause)
		}
	}
	return int64(size)
}

// add queues a session, or drops it.
func (s *signal) add(r *outcome.Record) {
	size := sizeOf(r)
	s.unsent.Add(1)
	if s.queued.Add(size) <= maxQueueBytes {
		select {
		case s.queue <- r:
			return
		default:
		}
	}
	s.queued.Add(-size)
	s.unsent.Add(-1)
	s.dropped.Add(1)
}

// batch is what is sent together.
type batch struct {
	sessions []*outcome.Record
	size     int64
}

func (b *batch) full() bool { return len(b.sessions) >= maxBatch || b.size >= maxBody }

// take moves a session from the queue to a batch.
func (s *signal) take(b *batch, r *outcome.Record) {
	size := sizeOf(r)
	s.queued.Add(-size)
	b.sessions, b.size = append(b.sessions, r), b.size+size
}

// run sends until ctx ends, and then what is left, until within ends.
func (s *signal) run(ctx, within context.Context) {
	for ctx.Err() == nil {
		s.send(within, s.next(ctx))
	}
	for len(s.queue) > 0 {
		var rest batch
		for !rest.full() && len(s.queue) > 0 {
			s.take(&rest, <-s.queue)
		}
		s.send(within, rest.sessions)
	}
}

// next waits for a session, and for others that come soon after it.
func (s *signal) next(ctx context.Context) []*outcome.Record {
	var b batch
	var late <-chan time.Time
	for !b.full() {
		select {
		case r := <-s.queue:
			s.take(&b, r)
			if late == nil {
				late = time.After(batchTime)
			}
		case <-late:
			return b.sessions
		case <-ctx.Done():
			return b.sessions
		}
	}
	return b.sessions
}

// send posts sessions, and repeats that where it may help. Without success it drops them.
func (s *signal) send(ctx context.Context, sessions []*outcome.Record) {
	if len(sessions) > 0 {
		s.sendUntil(ctx, sessions, time.Now().Add(giveUp))
		s.unsent.Add(-int64(len(sessions)))
	}
}

// sendUntil is send with the time at which it gives up. What is too large for one request
// is sent in halves.
func (s *signal) sendUntil(ctx context.Context, sessions []*outcome.Record, end time.Time) {
	to := s.url.Load()
	if to == nil || !time.Now().Before(end) { // a reload has ended it, or its parts took too long
		s.dropped.Add(int64(len(sessions)))
		return
	}
	body, err := json.Marshal(s.encode(sessions))
	if err != nil {
		s.dropped.Add(int64(len(sessions)))
		return
	}
	several := len(sessions) > 1
	if several && len(body) > maxBody {
		s.sendHalves(ctx, sessions, end)
		return
	}
	for wait := firstBackoff; ; wait = min(2*wait, maxBackoff) {
		again, err := s.post(ctx, *to, body)
		if several && errors.Is(err, errTooLarge) {
			s.sendHalves(ctx, sessions, end)
			return
		}
		s.tell(*to, err)
		if err == nil {
			return
		}
		if !again || time.Until(end) < wait || certs.Pause(ctx, wait) != nil {
			s.dropped.Add(int64(len(sessions)))
			return
		}
	}
}

func (s *signal) sendHalves(ctx context.Context, sessions []*outcome.Record, end time.Time) {
	half := len(sessions) / 2
	s.sendUntil(ctx, sessions[:half], end)
	s.sendUntil(ctx, sessions[half:], end)
}

// errTooLarge is the answer of a collector that takes smaller requests.
var errTooLarge = errors.New("the request is too large")

// post makes one request. again says whether repeating it may help.
func (s *signal) post(ctx context.Context, to string, body []byte) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header = s.headers.Clone()
	resp, err := s.exporter.client.Do(req)
	if err != nil {
		return true, err
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // for the connection to be used again, and for the error
	switch resp.StatusCode {
	case http.StatusOK, http.StatusAccepted, http.StatusNoContent:
		return false, nil
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		again = true
	case http.StatusRequestEntityTooLarge:
		return false, fmt.Errorf("%s: %w: %s", resp.Status, errTooLarge, bytes.TrimSpace(said))
	}
	return again, fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(said))
}

// tell logs when the collector begins to fail, and when it works again.
func (s *signal) tell(to string, err error) {
	switch failing := err != nil; {
	case failing == s.failing:
	case failing:
		s.failing = true
		s.log.Warn("the collector of tracing.otlp does not take the "+s.name+"; what exceeds the queue is dropped", "url", to, "cause", err.Error())
	default:
		s.failing = false
		s.log.Info("the collector of tracing.otlp takes the "+s.name, "url", to, "dropped", s.dropped.Load())
	}
}
