//go:build !linux

package relay

import (
	"time"

	"ambassador/l4/relay/load"
)

// Engine runs sessions. It holds nothing while there are none.
type Engine struct {
	// Budget counts the bytes that sessions hold; it may be nil. Static before the
	// first session.
	Budget *Budget

	portable portable
}

// New makes an engine.
func New() *Engine { return &Engine{} }

// Start takes both connections over and begins to move bytes.
func (e *Engine) Start(c Config) Session { return e.portable.start(c, e.Budget) }

// Stalls is always empty here: there are no loops.
func (e *Engine) Stalls() load.Stalls { return load.Stalls{} }

// Working is always 0 here.
func (e *Engine) Working() time.Duration { return 0 }

// Close frees the engine's resources, after its sessions have ended.
func (e *Engine) Close() {}
