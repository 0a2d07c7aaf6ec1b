package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// inheritedSockets are the sockets that systemd passed (LISTEN_FDS), by name. A
// child does not get the variables again.
func inheritedSockets() map[string][]*os.File {
	sockets := map[string][]*os.File{}
	for _, f := range activation.Files(true) {
		sockets[f.Name()] = append(sockets[f.Name()], f)
	}
	return sockets
}

// notifySystemd tells a service manager how we are (sd_notify), if there is one.
func notifySystemd(lines ...string) {
	daemon.SdNotify(false, strings.Join(lines, "\n")) // no manager, or none that listens: nothing to do
}

// reloadingState is the notification of a reload, which carries the time so that
// the manager can tell an old one.
func reloadingState() []string {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return []string{daemon.SdNotifyReloading}
	}
	return []string{daemon.SdNotifyReloading, fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000)}
}
