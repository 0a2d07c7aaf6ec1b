//go:build !linux

package process

// patient does nothing: only Linux has SCHED_BATCH.
func patient() {}

// asStarted runs f.
func asStarted(f func() error) error { return f() }
