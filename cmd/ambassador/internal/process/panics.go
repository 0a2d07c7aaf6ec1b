package process

import (
	"fmt"
	"runtime/debug"
)

// partReload is a part that goes on after a panic, beside those of l4, certs and the
// admin API: a label of ambassador_panics_total.
const partReload = "reload"

// panicked logs and counts a panic that was caught.
func (p *Process) panicked(part string, value any, stack []byte) {
	p.log.Error("panic", "part", part, "panic", fmt.Sprint(value), "stack", string(stack))
	p.metrics.Panicked(part)
}

// survive is body, whose panic becomes an error.
func (p *Process) survive(part string, body func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			p.panicked(part, v, debug.Stack())
			err = fmt.Errorf("panic: %v; this is a bug: please report it with the stack in the log", v)
		}
	}()
	return body()
}
