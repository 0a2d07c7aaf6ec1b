package process

import (
	"context"
	"net"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4"
)

// inheritedSockets returns the sockets that systemd passed (LISTEN_FDS), by name. It
// removes the variables, so that COMMAND does not use the sockets. Therefore it is
// called only once.
func inheritedSockets() map[string][]*os.File {
	sockets := map[string][]*os.File{}
	for _, f := range activation.Files(true) {
		sockets[f.Name()] = append(sockets[f.Name()], f)
	}
	return sockets
}

// serviceManager is the process that started us and listens on $NOTIFY_SOCKET
// (sd_notify). The zero value is none.
type serviceManager struct {
	socket   string        // $NOTIFY_SOCKET
	watchdog time.Duration // the manager kills us after this time without a message; zero: never
}

// managerVariables are the variables that the service manager sets for us only.
func managerVariables() []string { return []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} }

func newServiceManager(env func(string) (string, bool)) serviceManager {
	socket, _ := env("NOTIFY_SOCKET")
	if socket == "" {
		return serviceManager{}
	}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		watchdog = 0 // not a number: there is no watchdog
	}
	return serviceManager{socket, watchdog}
}

// notifyTimeout bounds a message, which daemon.SdNotify does not. If the manager hangs,
// its socket fills up, and a write to it would block forever.
const notifyTimeout = time.Second

// tell sends a message. A failure is ignored: nothing can be done about it.
func (m serviceManager) tell(lines ...string) {
	if m.socket == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.socket, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(notifyTimeout))
	conn.Write([]byte(strings.Join(lines, "\n")))
}

// ready tells the manager that every listener is bound, which units that depend on us
// wait for. The status line says what we wait for.
func (m serviceManager) ready(r l4.Readiness) { m.tell(daemon.SdNotifyReady, statusLine(r)) }

func (m serviceManager) stopping() { m.tell(daemon.SdNotifyStopping, "STATUS=draining") }

// reloading includes the time, so that the manager can recognize an old message.
func (m serviceManager) reloading() {
	m.tell(daemon.SdNotifyReloading, strings.TrimSpace(daemon.SdNotifyMonotonicUsec()))
}

// statusLine is the status that `systemctl status` shows.
func statusLine(r l4.Readiness) string {
	if r.Ready {
		return "STATUS=ready"
	}
	return "STATUS=not ready: " + output.Visible(strings.Join(strings.Fields(strings.Join(r.Waiting, "; ")), " "))
}

// statusInterval is how often the status is checked.
const statusInterval = time.Second

// attend tells the manager about changes and, if it has a watchdog, that we are alive,
// until ctx ends. ask takes the server's locks, so a server that hangs sends no
// message.
func (m serviceManager) attend(ctx context.Context, ask func() l4.Readiness) {
	if m.socket == "" {
		return
	}
	interval := statusInterval
	if m.watchdog > 0 {
		interval = min(interval, m.watchdog/2)
	}
	said := ""
	for sleep(ctx, interval) {
		var lines []string
		if now := statusLine(ask()); now != said {
			lines, said = append(lines, now), now
		}
		if m.watchdog > 0 {
			lines = append(lines, daemon.SdNotifyWatchdog)
		}
		if len(lines) > 0 {
			m.tell(lines...)
		}
	}
}
