package l4test

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// InNamespace puts the rest of the test into a network namespace of its own. Its
// loopback interface has an address and carries all traffic. Only sockets that the
// test's own goroutine opens are in the namespace.
func InNamespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		unable(t, "network namespaces need root")
	}
	runtime.LockOSThread() // and never unlocks: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		unable(t, "no network namespace: "+err.Error())
	}
	for _, line := range []string{"link set lo up", "addr add 10.213.7.1/32 dev lo", "route add default dev lo",
		"-6 addr add fd00:213::1/128 dev lo nodad", "-6 route add default dev lo"} {
		if text, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			unable(t, fmt.Sprintf("ip %s: %v %s", line, err, text))
		}
	}
}

// Nft adds rules to the test's namespace.
func Nft(t *testing.T, rules string) {
	t.Helper()
	cmd := exec.Command("/usr/sbin/nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if text, err := cmd.CombinedOutput(); err != nil {
		unable(t, fmt.Sprintf("nft (Debian's nftables): %v %s", err, text))
	}
}
