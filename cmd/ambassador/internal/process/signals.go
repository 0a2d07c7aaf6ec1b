package process

import (
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// commandSignals are signals for COMMAND alone. Without COMMAND they have Go's default
// effect, and SIGQUIT prints the stacks of all goroutines.
var commandSignals = []os.Signal{syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH}

// endSignals are the signals that Wait handles.
var endSignals = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP}

// EndSignals returns a channel of the signals that Wait handles, and of more, until stop
// is called. Meanwhile SIGPIPE is caught and dropped: a log without a reader must not
// end sessions.
func EndSignals(more ...os.Signal) (signals chan os.Signal, stop func()) {
	signals, dropped := make(chan os.Signal, 8), make(chan os.Signal, 1)
	signal.Notify(signals, slices.Concat(endSignals, more)...)
	signal.Notify(dropped, syscall.SIGPIPE)
	return signals, func() {
		signal.Stop(signals)
		signal.Stop(dropped)
	}
}

// ends reports whether a signal ends a process that runs no COMMAND yet, or no COMMAND
// any more. SIGQUIT does: it is the stop signal of some images.
func ends(s os.Signal) bool {
	return s != syscall.SIGHUP && (s == syscall.SIGQUIT || !slices.Contains(commandSignals, s))
}
