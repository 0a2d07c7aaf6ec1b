package process

import (
	"crypto/sha256"
	"encoding/hex"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/metrics"
)

// state is what the metrics of the process show.
func (p *Process) state() metrics.State {
	s := metrics.State{Ready: p.readiness().Ready, Limits: p.server.LimitUses(), DroppedLines: p.log.Dropped(), DroppedOTLP: p.otlp.Dropped(), Source: "flags"}
	if p.opts.Load != nil {
		s.Source = "file"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Hash, s.LoadedAt = p.hash, p.applied
	s.ReloadOK = p.lastReload == nil || p.lastReload.Error == ""
	return s
}

// hashOf identifies a configuration: files that mean the same have the same hash.
// Secrets are no part of it.
func hashOf(f *config.File) string {
	sum := sha256.New()
	if err := f.PrintYAML(sum); err != nil { // a hash does not fail
		return ""
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}
