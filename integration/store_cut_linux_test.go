package integration

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// settle waits until the keeper has done what all messages until now ask for.
func (k *keeper) settle() {
	k.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		k.t.Fatal(err)
	}
	defer r.Close()
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	defer unix.Close(s)
	err = unix.Sendmsg(s, []byte("BARRIER=1"), unix.UnixRights(int(w.Fd())), &unix.SockaddrUnix{Name: k.conn.LocalAddr().String()}, 0)
	w.Close()
	if err != nil {
		k.t.Fatal(err)
	}
	r.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, r); err != nil {
		k.t.Fatal(err)
	}
}

// saidReady returns how many processes have said that they are ready.
func (k *keeper) saidReady() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ready
}

// advanced waits until each session has moved two more lines: the first may have been on
// its way before.
func (k *cutting) advanced() error {
	k.mu.Lock()
	before := maps.Clone(k.back)
	k.mu.Unlock()
	return eventually(patience, func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		for name, n := range before {
			if k.back[name] < n+2 {
				return fmt.Errorf("%s does not go on", name)
			}
		}
		return nil
	})
}

// TestStoreCut proves that kill -9 at a random moment of a restart, of the process that
// leaves its sessions or of the one that takes them over, loses all sessions or none: a
// session that is lost ends with a reset at both ends, and no line is served twice.
// The service manager starts another process after each kill, with what it has kept.
func TestStoreCut(t *testing.T) {
	t.Parallel()
	kills, _ := size(3, 0, 50, 0)
	k, file := newCutting(t)
	leave, take, went := time.Second, time.Second, 0 // how long both processes take; how often the sessions went on
	for n := range kills + 1 {
		round := fmt.Sprintf("kill %d", n)
		m := newKeeper(t, 4)
		a := m.start("", "run", "-c", file)
		k.open(a, round)
		// The first round is whole. Of the others, half are in the last third of the time.
		moment := func(all time.Duration) time.Duration {
			if n%4 >= 2 {
				return all*2/3 + rand.N(all*2/3)
			}
			return rand.N(all)
		}
		began := time.Now()
		a.signal(syscall.SIGUSR2)
		if n > 0 && n%2 == 1 {
			during(moment(leave)) // at random, which is what is tested
			a.signal(os.Kill)
		}
		if _, err := a.exit(patience); err != nil {
			t.Fatal(err)
		}
		m.settle()
		if n == 0 {
			leave = time.Since(began)
		}
		began = time.Now()
		if n > 0 && n%2 == 0 {
			b := m.start("", "run", "-c", file)
			during(moment(take)) // at random, which is what is tested
			b.kill(t)
			m.settle()
		}
		said := m.saidReady()
		c := m.start("", "run", "-c", file)
		if err := eventually(patience, func() error {
			if m.saidReady() == said {
				return errors.New("the last process is not ready")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			take = time.Since(began)
		}
		carried, err := sample(c.process, `ambassador_upgrade_sessions_total{result="carried"}`)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case carried == 3*eachCut:
			went++
			if err := k.advanced(); err != nil {
				t.Errorf("%s: %v", round, err)
			}
		case carried != 0 || n == 0:
			t.Errorf("%s: %v of %d sessions were carried", round, carried, 3*eachCut)
		}
		c.kill(t)
		m.drop()
		k.reset(round)
	}
	t.Logf("%d kills within %v of the process before, or %v of the next; the sessions went on after %d", kills, leave.Round(time.Millisecond), take.Round(time.Millisecond), went-1)
}
