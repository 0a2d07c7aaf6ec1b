package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is the processor time that the program has taken, in its process and in the
// children of it: all threads, those that have ended too.
func (r *running) cpuTime() (time.Duration, error) {
	pid := r.cmd.Process.Pid
	total, err := processTime(pid)
	if err != nil {
		return 0, err
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	for _, text := range strings.Fields(string(children)) {
		child, err := strconv.Atoi(text)
		if err != nil {
			return 0, err
		}
		t, err := processTime(child)
		if err != nil {
			return 0, err
		}
		total += t
	}
	return total, nil
}

// processTime reads the CPU clock of another process, in nanoseconds. Its number is
// made of the process's (clock_getcpuclockid(3)).
func processTime(pid int) (time.Duration, error) {
	const allThreads = 2
	var at unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|allThreads), &at); err != nil {
		return 0, fmt.Errorf("the processor time of process %d: %w", pid, err)
	}
	return time.Duration(at.Nano()), nil
}
