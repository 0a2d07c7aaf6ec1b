package process

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/handover"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4"
)

// inheritedSockets returns the sockets that systemd passed (LISTEN_FDS), by name. It
// removes the variables, so that COMMAND does not use the sockets. Therefore it is
// called only once. It is an error if one of them is a connection: the connection of
// one client, for which systemd has started this process alone.
func inheritedSockets() (map[string][]*os.File, error) {
	sockets := map[string][]*os.File{}
	var err error
	for _, f := range activation.Files(true) {
		if handover.IsStore(f.Name()) {
			f.Close() // handover.Receive has read it
			continue
		}
		sockets[f.Name()] = append(sockets[f.Name()], f)
		if isConnection(f) {
			err = fmt.Errorf("systemd passed the connection of one client, where a listening socket is needed: set Accept=no in the .socket unit, and rename NAME@.service to NAME.service")
		}
	}
	return sockets, err
}

// isConnection reports whether f is a stream socket that does not listen.
func isConnection(f *os.File) (is bool) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	raw.Control(func(fd uintptr) {
		kind, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_TYPE)
		if err != nil || kind != syscall.SOCK_STREAM {
			return
		}
		listens, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
		is = err == nil && listens == 0
	})
	return is
}

// closeUnused closes the sockets that systemd passed and that no listener of f uses.
// Clients that connect to such a socket would wait in vain, so the log says it.
func (p *Process) closeUnused(f *config.File) {
	used := map[string]bool{}
	for _, address := range f.Addresses() {
		used[*address] = true
	}
	for name, files := range p.inherited {
		if used["systemd:"+name] {
			continue
		}
		p.log.Warn("systemd passed a socket that no listener uses: it is closed, and its clients get no answer; set listen: systemd:NAME for a listener, or remove the socket from the .socket unit", "name", name, "sockets", len(files))
		for _, file := range files {
			file.Close()
		}
		delete(p.inherited, name)
	}
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

const (
	// extendInterval is how often the manager is asked for more time to end.
	extendInterval = 3 * time.Second
	// extension is the time that it is asked for: long enough for a message that is late,
	// and for what follows the drain.
	extension = 15 * time.Second
)

// extend asks the manager for more time to end, until ctx ends: a drain has a bound of
// its own, which may be longer than TimeoutStopSec of the unit.
func (m serviceManager) extend(ctx context.Context) {
	if m.socket == "" {
		return
	}
	for {
		m.tell(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extension.Microseconds()))
		if certs.Pause(ctx, extendInterval) != nil {
			return
		}
	}
}

// reloading includes the time, so that the manager can recognize an old message.
func (m serviceManager) reloading() {
	m.tell(daemon.SdNotifyReloading, strings.TrimSpace(daemon.SdNotifyMonotonicUsec()))
}

// statusLine is the status that `systemctl status` shows.
func statusLine(r l4.Readiness) string {
	words := slices.Concat(r.Waiting, r.Warnings)
	line := "STATUS=ready"
	if !r.Ready {
		line = "STATUS=not ready"
	}
	if len(words) == 0 && r.Ready {
		return line
	}
	return line + ": " + output.Visible(strings.Join(strings.Fields(strings.Join(words, "; ")), " "))
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
	for certs.Pause(ctx, interval) == nil {
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
