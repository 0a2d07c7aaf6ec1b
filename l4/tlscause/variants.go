package tlscause

import (
	"crypto/tls"
	"io"
	"sync"
)

// maxVariants bounds the variants that are kept, of several hundred bytes each.
const maxVariants = 512

// Variant is one way to do a handshake with a TLS configuration.
type Variant struct {
	Base      *tls.Config
	Full      bool // resume no session
	Classical bool // send no post-quantum key
}

// Variants are the configurations of handshakes. A tls.Conn keeps its configuration as
// long as it lives, so all connections share one for each variant. The zero value is
// ready. Safe for concurrent use.
type Variants struct {
	mu   sync.Mutex
	made map[Variant]*tls.Config // guarded by mu
}

// Of returns the configuration of a variant, whose handshakes are watched. Their secrets
// go to keys, which is always the same.
func (v *Variants) Of(k Variant, keys io.Writer) *tls.Config {
	v.mu.Lock()
	defer v.mu.Unlock()
	if cfg := v.made[k]; cfg != nil {
		return cfg
	}
	if v.made == nil || len(v.made) >= maxVariants {
		v.made = map[Variant]*tls.Config{}
	}
	cfg := Watched(k.Base)
	cfg.KeyLogWriter = keys
	if k.Full && cfg.ClientSessionCache != nil {
		cfg.ClientSessionCache = onlyPut{cfg.ClientSessionCache}
	}
	if k.Classical {
		cfg.CurvePreferences = ClassicalCurves()
	}
	v.made[k] = cfg
	return cfg
}

// onlyPut is a session cache that keeps sessions and offers none.
type onlyPut struct{ tls.ClientSessionCache }

// Get returns no session.
func (onlyPut) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
