package process

import (
	"context"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
)

// reaper takes the exit status of orphans, if we are process 1, as in a container. The
// kernel gives process 1 every process whose parent has ended, and each stays a zombie
// until process 1 has waited for it. The zero value is ready to use.
type reaper struct {
	mu   sync.Mutex // held while COMMAND is started: it may end before its id is known
	keep int        // guarded by mu; the id of COMMAND, for which child.wait waits; 0: none
}

// run reaps until ctx ends. The process waits for it.
func (r *reaper) run(ctx context.Context) {
	if os.Getpid() != 1 {
		return
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	for {
		r.mu.Lock()
		r.reap()
		r.mu.Unlock()
		select {
		case <-ended:
		case <-ctx.Done():
			return
		}
	}
}

// start starts COMMAND, whose exit status is left to its Wait.
func (r *reaper) start(cmd *exec.Cmd) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	r.keep = cmd.Process.Pid
	return nil
}

// release is called once the Wait of COMMAND has returned. Orphans that ended after
// COMMAND had to wait for that.
func (r *reaper) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep = 0
	if os.Getpid() == 1 {
		r.reap()
	}
}

// reap waits for all children that have ended, but for COMMAND. mu is held.
func (r *reaper) reap() {
	for {
		pid := endedChild()
		if pid == 0 || pid == r.keep {
			return
		}
		syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
	}
}
