package certs

import (
	"context"
	"log/slog"
	"time"
)

// warnAt is the fraction of a certificate's life that is left when the log warns.
const warnAt = 1.0 / 6

// LogExpiry logs a warning when a sixth of the life of the source's certificate is
// left, and an error when it has expired; each once for each certificate. It
// returns when ctx ends, and leaves no goroutine behind.
func (s *Source) LogExpiry(ctx context.Context, log *slog.Logger) {
	var n notice
	for ctx.Err() == nil {
		changed := s.Changed()
		err := s.Guard(PartSource, func() error {
			n.log(s.Status(), time.Now(), log)
			return nil
		})
		if err != nil {
			log.Error("identity expiry not checked", append([]any{"identity", s.name}, Cause(err)...)...)
		}
		t := time.NewTimer(wallSlice)
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// notice records what was logged about the certificate with that serial number.
type notice struct {
	serial          string
	warned, expired bool
}

// log writes the line that is due. It sets the flag first, so that a panic of the
// logger does not repeat the line.
func (n *notice) log(st Status, now time.Time, log *slog.Logger) {
	if n.serial != st.Serial {
		*n = notice{serial: st.Serial}
	}
	if st.NotAfter.IsZero() {
		return
	}
	left, life := st.NotAfter.Sub(now.Round(0)), st.NotAfter.Sub(st.NotBefore)
	if !st.NextRenewal.IsZero() && st.LoadedAt.After(st.NotBefore) { // CAs date certificates back
		life = st.NotAfter.Sub(st.LoadedAt.Round(0))
	}
	switch {
	case left < 0 && !n.expired:
		*n = notice{st.Serial, true, true}
		log.Error("identity expired", "identity", st.Name, "serial", st.Serial, "not_after", st.NotAfter, "cause", orNone(st.LastError))
	case !n.warned && left <= time.Duration(warnAt*float64(life)):
		n.warned = true
		log.Warn("identity expires soon", "identity", st.Name, "serial", st.Serial, "not_after", st.NotAfter, "left", age(left), "cause", orNone(st.LastError))
	}
}

func orNone(s string) string {
	if s == "" {
		return "no new certificate was issued"
	}
	return s
}
