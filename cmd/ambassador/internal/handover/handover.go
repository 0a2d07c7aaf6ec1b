package handover

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"ambassador/cmd/ambassador/internal/program"
	"ambassador/l4/carry"
)

const (
	// variable has the descriptor of the state, in the environment of the next program.
	variable = "AMBASSADOR_HANDOVER"
	// backVariable says why the next program has gone back to this one.
	backVariable = "AMBASSADOR_HANDOVER_BACK"
	// CheckVariable asks a program to check its command line and configuration, as it
	// would be started to take over sessions, and to end.
	CheckVariable = "AMBASSADOR_HANDOVER_CHECK"
)

// ErrUnavailable means that this system cannot replace a program and keep its sessions.
var ErrUnavailable = errors.New("an upgrade in place needs Linux: start the new version beside this one or restart this one; SIGTERM lets sessions finish within drain.timeout")

// Received is the state that the program before this one has left.
type Received struct {
	*carry.Handover
	// Failed says why the next program could not take over and has gone back to this one;
	// empty: this is the next program.
	Failed string
	// Stored means that another process has left the state, in the store of the service
	// manager: there is nothing to go back to.
	Stored bool
	// Lost is how many sessions of that process were lost, all of them, and Cause why.
	// Their ends have been a RST.
	Lost  int
	Cause error

	world   program.World
	signals chan os.Signal
	state   int         // a descriptor
	late    *time.Timer // goes back if the program does not take over in time; nil: Stored
	number  map[int]int // by the number in the process before; nil: all numbers are the same
	percent int         // of the garbage collector, for Collect; zero: it was not stopped

	mu    sync.Mutex
	taken bool // guarded by mu; the state is this program's: there is no way back
}

// early are the signals that the process handles later: until then Signals keeps them.
var early = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR2}

// takeWithin bounds the start of the next program, in which all sessions stand still.
const takeWithin = 20 * time.Second

// Receive returns the state that the program before has left, or the process before in the
// store of the service manager; nil, or one without a state, if there is none. The
// environment of this process says nothing of the first afterwards. On an error this
// program cannot go on, and Receive has already tried to go back.
func Receive(w program.World) (*Received, error) {
	text, ok := w.Env(variable)
	signals := make(chan os.Signal, 8)
	if ok { // a signal must not end the sessions before this program handles signals
		signal.Notify(signals, early...)
	}
	if ok {
		conceal()
	}
	failed, _ := w.Env(backVariable)
	os.Unsetenv(variable)
	os.Unsetenv(backVariable)
	if !ok {
		return receiveStored(w), nil
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd <= 2 {
		return nil, fmt.Errorf("%s=%s: only `ambassador upgrade` sets this variable; remove it", variable, text)
	}
	r := &Received{Failed: failed, world: w, signals: signals, state: fd}
	b, err := readState(fd)
	if err != nil {
		return nil, fmt.Errorf("%s=%s: only `ambassador upgrade` sets this variable; remove it: %w", variable, text, err)
	}
	r.stopCollector()
	if r.Handover, err = carry.Read(b); err == nil {
		r.late = time.AfterFunc(takeWithin, func() { r.GoBack(fmt.Errorf("it did not take over within %s", takeWithin)) })
		return r, nil
	}
	if r.Handover != nil {
		r.GoBack(err)
	}
	return nil, err
}

// stopCollector stops the garbage collector, which would use as much of the processors as
// decoding the state does, while all sessions stand still.
func (r *Received) stopCollector() {
	if r.percent == 0 {
		r.percent = debug.SetGCPercent(-1)
	}
}

// Collect starts the garbage collector again. It is called when the sessions go on.
func (r *Received) Collect() {
	if r != nil && r.percent != 0 {
		debug.SetGCPercent(r.percent)
		r.percent = 0
	}
}

// Signals gives the signals that have come since the start to the channel that handles
// them from now on.
func (r *Received) Signals(to chan<- os.Signal) {
	if r == nil {
		return
	}
	signal.Stop(r.signals)
	for len(r.signals) > 0 {
		select {
		case to <- <-r.signals:
		default: // others wait already
		}
	}
}

// Pending reports whether the state is not taken over yet. A nil Received has none.
func (r *Received) Pending() bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.Handover != nil && !r.taken
}

// GoBack replaces this program by the one before, which continues with the state. It
// returns only if that is not possible: then sessions end with the process, by RST. A
// program to which another has gone back does not go anywhere.
func (r *Received) GoBack(why error) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Handover == nil || r.taken || r.Failed != "" {
		return
	}
	if r.Stored {
		fmt.Fprintf(r.world.Stderr, "ambassador: %d sessions of the process before end with a reset, because this one cannot take them over: %v\n", len(r.Server.Sessions)+len(r.Server.Parked), why)
		return
	}
	text := strings.ReplaceAll(why.Error(), "\x00", " ")
	fmt.Fprintf(r.world.Stderr, "ambassador: the upgrade failed; going back to the program before: %s\n", text)
	err := execFile(r.Old, []int{r.state, r.Old}, []string{variable + "=" + strconv.Itoa(r.state), backVariable + "=" + text})
	fmt.Fprintf(r.world.Stderr, "ambassador: going back failed, and all sessions end: %v\n", err)
}

// Recover goes back if the program panics before it has taken the state over. It is
// deferred.
func (r *Received) Recover() {
	if !r.Pending() {
		return
	}
	if v := recover(); v != nil {
		r.GoBack(fmt.Errorf("panic: %v", v))
		panic(v)
	}
}

// Take says that the state is this program's from now on, and that there is no way back.
func (r *Received) Take() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.taken {
		r.taken = true
		if r.late != nil {
			r.late.Stop()
		}
		release(r)
	}
}
