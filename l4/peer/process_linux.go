package peer

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
)

// holders finds the processes that hold sockets. It serves the whole process: what it
// remembers is the kernel's, and the bound on its work is one for all listeners.
var holders = search{turn: make(chan struct{}, 1)}

// search looks for the process that holds a socket, one question at a time.
type search struct {
	turn   chan struct{} // has one place; the goroutine that fills it owns recent
	recent []int         // processes that held a socket before, the last first
}

// maxRecent bounds recent. An application that connects again is found there, without
// the list of all processes.
const maxRecent = 16

// find returns the process that holds the socket; 0 if it is not found within ctx.
func (s *search) find(ctx context.Context, inode uint32) int {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return 0
	}
	link := "socket:[" + strconv.FormatUint(uint64(inode), 10) + "]"
	pid := holderOf(ctx, link, s.recent)
	if pid == 0 {
		pid = holderOf(ctx, link, processes())
	}
	if pid != 0 {
		s.recent = slices.DeleteFunc(s.recent, func(p int) bool { return p == pid })
		s.recent = slices.Insert(s.recent, 0, pid)
		s.recent = s.recent[:min(len(s.recent), maxRecent)]
	}
	return pid
}

// processes lists the ids of all processes, the youngest first.
func processes() []int {
	proc, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []int
	for _, entry := range proc {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			all = append(all, pid)
		}
	}
	slices.Sort(all)
	slices.Reverse(all)
	return all
}

// holderOf returns the first of the processes that has a descriptor with that link; 0 if
// none has, or ctx ends.
func holderOf(ctx context.Context, link string, processes []int) int {
	for _, pid := range processes {
		if ctx.Err() != nil {
			return 0
		}
		if holds(ctx, pid, link) {
			return pid
		}
	}
	return 0
}

// holds reports whether a process has a descriptor with that link. It returns false if
// ctx ends, or if the process has ended or is not for us to look into.
func holds(ctx context.Context, pid int, link string) bool {
	dir, err := os.Open("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		return false
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(256) // a process may have a million
		for _, name := range names {
			if ctx.Err() != nil {
				return false
			}
			if to, err := os.Readlink(dir.Name() + "/" + name); err == nil && to == link {
				return true
			}
		}
		if err != nil {
			return false
		}
	}
}

// processName is the name of a process; empty if it has ended.
func processName(pid int) string {
	name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(name), "\n")
}
