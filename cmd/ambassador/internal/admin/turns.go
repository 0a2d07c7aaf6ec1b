package admin

import (
	"bytes"
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"ambassador/cmd/ambassador/internal/api"
)

// turns bounds what the answers of an HTTP server cost, however often clients ask:
// one answer at a time is made, in the order of the requests, and as much time as
// that took passes before the next, so that they take half a processor at most. An
// answer is made in memory and sent afterwards, so that a client that does not read
// delays no other; the sum of the answers that are being sent is bounded.
type turns struct {
	gap  time.Duration // the least time from the end of a turn to the next; static
	turn chan struct{} // has room for one: the request whose turn it is
	free time.Time     // owned by that request; when the next turn may begin

	mu      sync.Mutex
	sending int // guarded by mu; bytes
}

const (
	// turnTimeout bounds the wait for a turn: longer than it takes where every
	// connection asks for what costs most.
	turnTimeout = 5 * time.Second
	// sendTimeout bounds the sending of an answer.
	sendTimeout = 10 * time.Second
	// maxSending bounds the answers that are being sent, in bytes. An answer that is
	// longer is sent alone.
	maxSending = 32 << 20
	// requestGap bounds the requests of a server to a thousand a second, those that
	// cost little included. With Gate's bound a request waits for 32 ms at most.
	requestGap = time.Millisecond
)

func newTurns(gap time.Duration) *turns { return &turns{gap: gap, turn: make(chan struct{}, 1)} }

// take waits for the caller's turn, which ends with done.
func (t *turns) take(ctx context.Context) (done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	select {
	case t.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-time.After(time.Until(t.free)):
	case <-ctx.Done():
		<-t.turn
		return nil, ctx.Err()
	}
	start := time.Now()
	return func() {
		now := time.Now()
		t.free = now.Add(max(now.Sub(start), t.gap))
		<-t.turn
	}, nil
}

// pass waits for a turn that ends at once: only the gap between turns counts.
func (t *turns) pass(ctx context.Context) error {
	done, err := t.take(ctx)
	if err == nil {
		done()
	}
	return err
}

// serve sends what answer writes. A nil error means that the client was answered.
func (t *turns) serve(w http.ResponseWriter, r *http.Request, answer func(http.ResponseWriter) error) error {
	a := &answerBuffer{header: w.Header(), status: http.StatusOK}
	if err := t.fill(r.Context(), a, answer); err != nil {
		return err
	}
	n := a.body.Len()
	if !t.mayReserve(n) {
		return errBusy()
	}
	defer t.sent(n)
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(sendTimeout)) //nolint:errcheck // the recorder of a test has none
	w.Header().Set("Content-Length", strconv.Itoa(n))
	w.WriteHeader(a.status)
	w.Write(a.body.Bytes())
	return nil
}

func errBusy() error {
	return &api.Error{Status: http.StatusServiceUnavailable, Text: "too many requests at a time", Hint: "ask again later"}
}

// fill makes an answer in its turn.
func (t *turns) fill(ctx context.Context, a *answerBuffer, answer func(http.ResponseWriter) error) error {
	done, err := t.take(ctx)
	if err != nil {
		return errBusy()
	}
	defer done()
	return answer(a)
}

// mayReserve counts n bytes as being sent, if that is not too much.
func (t *turns) mayReserve(n int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sending > 0 && t.sending+n > maxSending {
		return false
	}
	t.sending += n
	return true
}

func (t *turns) sent(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sending -= n
}

// answerBuffer is an http.ResponseWriter that keeps the answer.
type answerBuffer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answerBuffer) Header() http.Header         { return a.header }
func (a *answerBuffer) WriteHeader(status int)      { a.status = status }
func (a *answerBuffer) Write(b []byte) (int, error) { return a.body.Write(b) }
