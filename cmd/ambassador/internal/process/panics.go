package process

import (
	"fmt"
	"runtime/debug"
)

// partReload is a part that continues after a panic, like those of l4, certs and the
// admin API. It is a label value of ambassador_panics_total.
const partReload = "reload"

// panicked logs and counts a recovered panic.
func (p *Process) panicked(part string, value any, stack []byte) {
	p.log.Error("panic", "part", part, "panic", fmt.Sprint(value), "stack", string(stack))
	p.metrics.Panicked(part)
}

// survive runs body and returns its panic as an error.
func (p *Process) survive(part string, body func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			p.panicked(part, v, debug.Stack())
			err = fmt.Errorf("panic: %v; this is a bug: please report it with the stack in the log", v)
		}
	}()
	return body()
}
