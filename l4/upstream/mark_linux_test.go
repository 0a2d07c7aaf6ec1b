package upstream

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ambassador/l4/ending"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/relay"
)

// Who may not mark is told what is missing, before anything is dialled.
func TestMarkWithoutLeave(t *testing.T) {
	runtime.LockOSThread() // and never unlocks: the thread ends with the test
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Name: "u", Endpoints: endpointsOf("127.0.0.1:1"), Mark: 7}
	e := relay.New()
	defer e.Close()
	o := Deps{Marked: func(mark int) netconn.DialFunc { return netconn.Dialer(e, mark) }}
	_, err := New(cfg, o)
	var unmarked *relay.MarkError
	if !errors.As(err, &unmarked) || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("%v", err)
	}
	_, err = netconn.Dialer(e, 7)(context.Background(), "tcp", "127.0.0.1:1")
	if reason := ending.Classify(outcome.StageDial, err); reason != outcome.LocalExhausted {
		t.Errorf("a dial: %v, %v", reason, err)
	}
	cfg.Mark = -1
	if _, err := New(cfg, o); err == nil || !strings.Contains(err.Error(), "-1 is not between 0 and") {
		t.Errorf("%v", err)
	}
}
