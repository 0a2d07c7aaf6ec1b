//go:build !linux

package relay

import "time"

// Engine runs sessions. It holds nothing while there are none.
type Engine struct {
	// Budget counts what sessions hold. Nil: nothing is counted. Static before the
	// first session.
	Budget *Budget

	portable portable
}

// New makes an engine.
func New() *Engine { return &Engine{} }

// Start takes both connections over and begins to move bytes.
func (e *Engine) Start(c Config) Session { return e.portable.start(c, e.Budget) }

// Stalls is nothing here: there are no loops.
func (e *Engine) Stalls() Stalls { return Stalls{} }

// Working is nothing here.
func (e *Engine) Working() time.Duration { return 0 }

// Close frees what the engine holds, once its sessions have ended.
func (e *Engine) Close() {}
