//go:build !linux

package relay

// Engine runs sessions. It holds nothing while there are none.
type Engine struct{ portable portable }

// New makes an engine.
func New() *Engine { return &Engine{} }

// Start takes both connections over and begins to move bytes.
func (e *Engine) Start(c Config) Session { return e.portable.start(c) }

// Close frees what the engine holds, once its sessions have ended.
func (e *Engine) Close() {}
