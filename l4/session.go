package l4

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/l4/starttls"
	"ambassador/l4/task"
	"ambassador/l4/upstream"
	"ambassador/l4/watch"
	"ambassador/policy"
)

// session is one accepted connection, from accept to its record.
type session struct {
	// Static after accept.
	server *Server
	route  *route // the listener's route at accept, and from routeTo on at routing; see route.established
	seq    uint64

	downstream *downstream        // owned by Run until the relay takes it; nil from then on
	upstream   *upstream.Upstream // owned by Run; nil before one is chosen

	traffic *traffic // guarded by Server.mu; the traffic that counts the session

	// The small fields are together to save memory: a session may live for days.
	stack     int32 // owned by Run; bytes that are counted for the task's stack
	slot      bool  // guarded by Server.mu; the session counts for limits.connections
	accounted bool  // guarded by mu; rec includes flow's bytes
	ended     ended // guarded by mu
	parked    bool  // guarded by mu; the session waits for its client without a goroutine

	held atomic.Int64 // bytes that memory counts for the session before the relay

	mu        sync.Mutex
	rec       outcome.Account    // guarded by mu until it is recorded, but for Start; what status shows of a live session; ID is not set before
	cancel    context.CancelFunc // guarded by mu; ends establishment
	stopped   error              // guarded by mu; why the session was stopped from outside; the first cause counts
	flow      relay.Session      // guarded by mu; nil before the relay
	conn      *upstream.Conn     // guarded by mu; the relay's connection to the upstream; nil before the relay
	countedAs *policy.Source     // guarded by mu; the source that the listener's limiter counts it for; nil: not counted
	place     *list.Element      // guarded by mu; its element in the route's parked sessions until greet is over; nil: none

	suspended *task.Task // guarded by mu; the task of a parked session that has already run; else nil
}

// ended is what of a session does not change any more.
type ended uint8

const (
	nothing   ended = iota
	concluded       // the ending is decided, and the client is being told
	recorded        // and the record, which is read without session.mu
)

// start begins the life of a connection:
//
//	admit → greet → route → [permit → dial → proxy → starttls → tls] → answer → dialogue → relay
//
// start admits the session. If the client has to speak first, start parks the session
// until it does. Run does the rest. The stages in brackets are one attempt;
// upstream.ConnectFor repeats them while attempts and time are left. Each stage begins only if the one
// before succeeded. The first error goes to fail and then close, which writes
// the one record. Finally, Run hands both connections to the relay and returns; when the relay ends, it
// calls close.
func (s *session) start() {
	defer s.recoverPanic()
	if err := s.admit(); err != nil {
		s.fail(err)
		return
	}
	s.begin()
}

// isStopped reports whether stop was called.
func (s *session) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped != nil
}

// begin continues an admitted session.
func (s *session) begin() {
	defer s.recoverPanic()
	if s.park() {
		return
	}
	if _, ok := s.downstream.conn.(awaiter); ok {
		s.server.tasks.Run(s.server.ctx, s)
		return
	}
	s.server.tasks.Go(s.server.ctx, s)
}

// Left counts the memory of the session's goroutine when its task leaves the loop.
func (s *session) Left() { s.holdStack(leaveCost) }

// Suspended counts the memory of the session's coroutine.
func (s *session) Suspended() { s.holdStack(suspendCost) }

// holdStack counts the bytes of what the task runs on, in place of what it ran on before.
func (s *session) holdStack(n int32) {
	if n > s.stack {
		s.hold(int64(n - s.stack))
		s.stack = n
	}
}

// Run runs the session's task.
func (s *session) Run(ctx context.Context) {
	ctx, cancel := task.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.cancel = cancel
	if s.stopped != nil { // stopped before there was anything to cancel
		cancel()
	}
	s.mu.Unlock()
	defer s.recoverPanic()
	if socket, ok := s.downstream.conn.(interface{ SetLeaver(relay.Leaver) }); ok {
		socket.SetLeaver(task.From(ctx))
	}
	if err := s.establish(ctx); err != nil {
		s.fail(err)
	}
}

// fail ends a session that the relay does not own.
func (s *session) fail(err error) {
	reportRelayed(s.server.guard(), PartSession, err)
	s.close(s.ending(err))
}

// establish is the list of stages that Run executes. If it returns an error, the caller
// must close the session; if not, the relay owns it.
func (s *session) establish(ctx context.Context) error {
	if !s.route.cfg.proxied() { // the PROXY header says where the client is
		s.identify(ctx)
	}
	if err := s.greet(ctx); err != nil {
		return err
	}
	s.joinTrace(s.downstream.asks().Trace)
	s.identify(ctx)
	conn, failure := s.reach(ctx)
	defer conn.CloseOnPanic()
	if err := s.answer(ctx, conn, failure); err != nil {
		return err
	}
	if err := s.dialogue(ctx, conn); err != nil {
		conn.Abort(err)
		return err
	}
	return s.relay(conn)
}

// admit refuses a session if the process or the listener has reached its limit.
func (s *session) admit() error {
	s.at(outcome.StageAdmit)
	if limit, ok := s.server.takeSlot(s); !ok {
		s.note(func(r *outcome.Record) { r.Limit = "limits.connections" })
		return &outcome.Error{Stage: outcome.StageAdmit, Reason: outcome.Limit,
			Err: fmt.Errorf("%d sessions are open, and limits.connections is %d", limit, limit)}
	}
	return s.enter()
}

// reach chooses the upstream and connects to it. Meanwhile it watches the client for a
// reset.
func (s *session) reach(ctx context.Context) (*upstream.Conn, *outcome.Error) {
	defer watch.Begin(ctx, s.downstream.conn, func() { s.stop(errDownstreamGone) }).Stop()
	want, err := s.routeTo(ctx)
	if err != nil {
		return nil, err
	}
	want.Session = s.id()
	conn, err := s.upstream.ConnectFor(ctx, want, s.trying)
	if err == nil && s.isOwnDial() {
		err = s.loops()
		conn.Abort(err)
		conn = nil
	}
	return conn, err
}

// answer tells the client how the connection to the upstream went, if the client's
// protocol can express it. Other clients learn it from what they receive next.
func (s *session) answer(ctx context.Context, conn *upstream.Conn, failure *outcome.Error) error {
	asked := s.downstream.requested()
	if failure != nil {
		s.conclude()
	}
	switch {
	case failure == nil && asked == nil:
		s.at(outcome.StageAnswer)
		return nil
	case failure == nil:
		s.at(outcome.StageAnswer)
		return s.accept(ctx, asked, conn)
	case ctx.Err() != nil:
	case asked != nil:
		s.decline(ctx, asked, failure)
	default:
		if p := s.protocol(); p != nil {
			s.answerFailure(ctx, p, failure)
		}
	}
	return failure
}

// protocol is the protocol that the client speaks; nil if it is not known.
func (s *session) protocol() *starttls.Protocol {
	if s.upstream != nil && s.upstream.Protocol() != nil {
		return s.upstream.Protocol()
	}
	return s.route.asked
}

// answerTimeout is how long a client that cannot be served may take to begin its
// dialogue, so that it can be told why. Clients that speak first do so at once.
const answerTimeout = time.Second

// answerFailure reports the failure in the client's protocol; psql, for example, prints
// it. It is best effort: the record has the reason anyway.
func (s *session) answerFailure(ctx context.Context, protocol *starttls.Protocol, failure *outcome.Error) {
	ctx, cancel := task.WithTimeout(ctx, answerTimeout)
	defer cancel()
	defer netconn.Bound(ctx, s.downstream.conn)()
	if err := protocol.Refuse(s.downstream.stream(), fmt.Errorf("%w (%s)", ending.ForClient(failure), failure.Reason)); err == nil {
		netconn.CloseAfterReading(s.downstream.stream())
	}
}

// dialogue runs the client's part of a STARTTLS protocol. If TLS with the upstream had
// to wait for the client, dialogue begins it too. Only here does the session wait for
// its client between greet and the relay. A dialogue that needs no relay (a PostgreSQL
// CancelRequest) ends the session with outcome.Closed.
func (s *session) dialogue(ctx context.Context, conn *upstream.Conn) error {
	d := conn.Dialogue()
	if d == nil {
		return s.passCancel(ctx, conn)
	}
	if d.Begin != nil {
		if _, err := s.talk(ctx, conn, d.Begin); err != nil {
			return err
		}
		s.at(outcome.StageTLS)
		if err := s.protect(ctx, conn); err != nil {
			s.sendRefusal(ctx, d, fmt.Errorf("%w (%s)", err, err.Reason))
			return err
		}
	}
	if d.Finish == nil {
		return nil
	}
	d.Encrypted = s.downstream.tls != nil
	d.Confidential = s.downstream.conn.LocalAddr().Network() == "unix"
	out, err := s.talk(ctx, conn, d.Finish)
	if err != nil {
		return err
	}
	if out.Cancel != nil {
		return s.sendCancel(ctx, conn, out.Cancel)
	}
	if out.Answered {
		conn.Succeeded()
	}
	return nil
}

// protect begins TLS with the upstream.
func (s *session) protect(ctx context.Context, conn *upstream.Conn) *outcome.Error {
	rec := s.rec.Record()
	rec.Trace.Begin(string(outcome.StageTLS), rec.Address, rec.Attempts)
	err := conn.Protect(ctx)
	if err != nil {
		rec.Trace.End(err.Reason, err.Err)
		return err
	}
	rec.Trace.End("", nil)
	return nil
}

// talk runs one part of the dialogue, in at most timeouts.handshake.
func (s *session) talk(ctx context.Context, conn *upstream.Conn, part starttls.Part) (starttls.Result, error) {
	s.at(outcome.StageDialogue)
	within, cancel := task.WithTimeout(ctx, s.route.handshake())
	defer cancel()
	unbound := netconn.Bound(within, s.downstream.conn, conn)
	out, err := part(s.metered(s.downstream.stream()), s.metered(conn))
	s.note(func(r *outcome.Record) { r.BytesUp, r.BytesDown = r.BytesUp+out.Up, r.BytesDown+out.Down })
	unbound()
	conn.Sent(out.Up)
	if err == nil {
		return out, nil
	}
	end := conn.DialogueError(ctx, err)
	var side *starttls.SideError
	if !errors.As(err, &side) || side.Side == starttls.Upstream { // otherwise the client has closed, or sends nothing
		s.sendRefusal(ctx, conn.Dialogue(), err)
	}
	return out, end
}

// sendRefusal tells a client that waits for an answer why there is none, in its
// protocol. It is best effort: the record has the reason anyway.
func (s *session) sendRefusal(ctx context.Context, d *starttls.Dialogue, why error) {
	if d.Refuse == nil || ctx.Err() != nil {
		return
	}
	text := d.Refuse(why)
	if len(text) == 0 {
		return
	}
	ctx, cancel := task.WithTimeout(ctx, answerTimeout)
	defer cancel()
	defer netconn.Bound(ctx, s.downstream.conn)()
	if _, err := s.downstream.stream().Write(text); err == nil {
		netconn.CloseAfterReading(s.downstream.stream())
	}
}

// sendCancel passes a CancelRequest to every address of the upstream, over TLS: a
// cancel key belongs to one server, and only that server knows it.
func (s *session) sendCancel(ctx context.Context, conn *upstream.Conn, packet []byte) error {
	n, err := s.upstream.Deliver(ctx, conn, packet)
	if n == 0 {
		return err
	}
	s.note(func(r *outcome.Record) { r.BytesUp += int64(len(packet)) })
	return &outcome.Error{Stage: outcome.StageDialogue, Reason: outcome.Closed,
		Err: fmt.Errorf("cancel request passed on to %d of the upstream's addresses", n)}
}

// relay hands both connections to the relay. From here on the session holds no
// goroutine: the relay calls Settled and Done.
func (s *session) relay(conn *upstream.Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped != nil || s.server.ctx.Err() != nil {
		conn.Abort(s.stopped)
		return errShutdown // ending knows the real cause
	}
	rec := s.rec.Record()
	rec.Stage, rec.Establish = outcome.StageRelay, outcome.Seconds(time.Since(rec.Start))
	t := s.route.cfg.Timeouts
	s.conn = conn
	s.flow = s.server.engine.Start(relay.Config{
		Downstream: s.downstream.leg(),
		Upstream:   conn.Leg(),
		Limits:     relay.Limits{Idle: t.Idle, HalfCloseIdle: t.HalfCloseIdle, Lifetime: t.Lifetime},
		HoldFIN:    conn.HoldFIN(),
		Owner:      s, // closures would cost memory for each session
	})
	// What was needed only to establish the connection is released: a session may live
	// for days.
	s.cancel, s.downstream, s.route = nil, nil, s.route.established
	s.rec.Pack()
	s.letGo()
	conn.HandedOver()
	return nil
}

// Settled is called by the relay at the upstream's first byte, or after a second.
func (s *session) Settled() { s.conn.Succeeded() }

// Done is called by the relay once it has closed both connections.
func (s *session) Done(r relay.Result) {
	defer s.recoverPanic()
	conn := s.conn
	settled := conn.IsSettled() && !r.Settled
	reason, err := ending.RelayReason(r, settled)
	if r.End == relay.EndInternal {
		reportRelayed(s.server.guard(), PartRelay, r.Err, "id", s.id())
	}
	reason, err = ending.AfterClient(s.upstream.Protocol(), reason, err, r)
	if reason == outcome.Closed && err == nil {
		err = conn.LostAnswer(r)
	}
	end := conn.Failure(outcome.StageRelay, reason, err)
	if reason == outcome.UpstreamTLSRejected && !settled && r.Down == 0 {
		end.Stage = outcome.StageTLS // in TLS 1.3 the refusal only arrives here
	}
	conn.Sent(r.Up)
	conn.Settle(ending.SettleReason(reason, r), end)
	conn.Release()
	s.account(r)
	s.close(end)
}

// account adds the relay's result to the record. From then on the record includes the
// relay's bytes, and moved no longer adds those of flow.
func (s *session) account(r relay.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accounted = true
	rec := s.rec.Record()
	rec.BytesUp, rec.BytesDown, rec.Truncated = rec.BytesUp+r.Up, rec.BytesDown+r.Down, r.Truncated
	if r.FirstClose != relay.None {
		rec.FirstClose = r.FirstClose.String()
	}
}

// close ends the session at any stage: it closes or resets both connections, frees the
// slot, and writes the one record.
func (s *session) close(end *outcome.Error) {
	s.joinTraceLate(end.Stage)
	s.mu.Lock()
	r := s.rec.Record()
	if s.ended == recorded { // a panic after the end: others may have this one
		again := *r
		r = &again
	}
	r.Stage, r.Reason = end.Stage, end.Reason
	if end.Reason == outcome.Probe && r.BytesUp+r.BytesDown > 0 { // for example a greeting in a dialogue
		r.Reason = outcome.Closed
		if netconn.IsReset(end.Err) {
			r.Reason = outcome.DownstreamReset
		}
	}
	r.Trace.End(end.Reason, end.Err) // a phase that the end has cut
	r.Duration = outcome.Seconds(time.Since(r.Start))
	if end.Err != nil {
		r.Cause, r.Hint = outcome.CauseAndFix(end.Err)
	}
	if stop, ok := errors.AsType[*ending.Stop](end.Err); ok {
		r.KilledBy = stop.By
	}
	if end.Limit != "" {
		r.Limit = end.Limit
	}
	r.RetryIn = outcome.Seconds(end.RetryIn)
	if r.FirstClose == "" && (end.Reason == outcome.Closed || end.Reason == outcome.Probe) {
		r.FirstClose = relay.Downstream.String()
	}
	r.ID, s.ended = s.id(), recorded
	relayed := s.flow != nil
	s.mu.Unlock()
	s.unlist()
	if !relayed {
		s.downstream.end(end.Reason)
	}
	s.leave()
	s.letGo()
	s.server.forget(s, r)
}

// ending converts the error from establish into the session's ending. A session that
// was stopped from outside ends with the reason for the stop, whatever error that
// caused.
func (s *session) ending(err error) *outcome.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var end *outcome.Error
	if !errors.As(err, &end) {
		end = &outcome.Error{Stage: s.rec.Record().Stage, Reason: outcome.Internal, Err: err}
	}
	if cause := s.cause(); cause != nil && s.ended == nothing {
		return &outcome.Error{Stage: end.Stage, Reason: ending.StopReason(cause), Err: cause}
	}
	return end
}

// cause is why the session was stopped from outside; nil if it was not. mu is held.
func (s *session) cause() error {
	if s.stopped == nil && s.server.ctx.Err() != nil {
		return errShutdown
	}
	return s.stopped
}

// conclude makes the decided ending final: a stop while the client is being told does
// not replace it.
func (s *session) conclude() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nothing && s.cause() == nil {
		s.ended = concluded
	}
}

// stop ends the session from outside; ending.StopReason names the cause. It may be called at
// any time, from any goroutine. The first cause counts.
func (s *session) stop(cause error) {
	s.mu.Lock()
	if s.stopped == nil {
		s.stopped = cause
	}
	flow, cancel := s.flow, s.cancel
	s.mu.Unlock()
	switch {
	case flow != nil:
		flow.Stop(cause)
	case cancel != nil:
		cancel()
		go s.resumeParked() // not on the caller's goroutine, which may be locked to a thread
	default:
		if _, ok := s.unpark(); ok {
			s.close(s.ending(cause))
		}
	}
}

// recoverPanic ends a session that panics, and keeps the other sessions alive.
func (s *session) recoverPanic() {
	if v := recover(); v != nil {
		err := s.server.guard().Report(PartSession, v, debug.Stack(), "id", s.id())
		s.close(&outcome.Error{Stage: s.snapshot().Stage, Reason: outcome.Internal, Err: err})
	}
}

// trying records the progress of upstream.ConnectFor.
func (s *session) trying(stage outcome.Stage, endpoint, address string, attempt int) {
	s.note(func(r *outcome.Record) {
		r.Stage, r.Attempts, r.Address = stage, attempt, address
		if endpoint != "" {
			r.Endpoint = endpoint
		}
	})
}

// at records the session's current stage.
func (s *session) at(stage outcome.Stage) { s.note(func(r *outcome.Record) { r.Stage = stage }) }

// note locks mu and changes the record, unless the session has ended.
func (s *session) note(change func(*outcome.Record)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != recorded {
		change(s.rec.Record())
	}
}

// snapshot returns the current record of a live session.
func (s *session) snapshot() outcome.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rec.Copy()
	r.ID, r.Duration = s.id(), outcome.Seconds(time.Since(r.Start))
	r.BytesUp, r.BytesDown = s.moved()
	return r
}

// bytes returns how many bytes the session has moved so far in each direction.
func (s *session) bytes() (up, down int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moved()
}

// moved is bytes for a caller that holds mu.
func (s *session) moved() (up, down int64) {
	up, down = s.rec.Bytes()
	if s.flow != nil && !s.accounted {
		up += s.flow.Up()
		down += s.flow.Down()
	}
	return up, down
}

// goesTo reports whether the session's relay is connected to the address.
func (s *session) goesTo(a *upstream.Address) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn != nil && s.conn.GoesTo(a)
}

// relayed is the session's relay; nil before the relay stage.
func (s *session) relayed() relay.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flow
}

func (s *session) id() string { return s.server.prefix + strconv.FormatUint(s.seq, 10) }
