package process

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// losesCapabilities returns an error if an exec would take capabilities away. Those that
// the program has from its file do not come back, because the process is hardened
// (PR_SET_NO_NEW_PRIVS); ambient ones stay, and root keeps all.
func losesCapabilities() error {
	if os.Geteuid() == 0 {
		return nil
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&head, &data[0]) != nil {
		return nil
	}
	for c := range uintptr(64) {
		has := data[c/32].Permitted&(1<<(c%32)) != 0
		if ambient, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, c, 0, 0); has && err == nil && ambient == 0 {
			return errors.New("an upgrade in place would take the capabilities away that the program has from its file (setcap); give them to the service instead (systemd: AmbientCapabilities=), or restart")
		}
	}
	return nil
}
