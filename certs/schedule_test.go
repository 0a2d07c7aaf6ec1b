package certs

import (
	"crypto/x509"
	"testing"
	"time"
)

// TestSchedule is the specification of when a certificate is renewed.
func TestSchedule(t *testing.T) {
	start := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	leaf := func(from, life time.Duration) *x509.Certificate {
		return &x509.Certificate{NotBefore: start.Add(from), NotAfter: start.Add(from + life)}
	}
	for _, tt := range []struct {
		name     string
		leaf     *x509.Certificate
		obtained time.Time
		jitter   float64
		want     time.Duration // after start
	}{
		{"at two thirds", leaf(0, 24*time.Hour), start, 0, 16 * time.Hour},
		{"at most a twentieth earlier", leaf(0, 20*time.Hour), start, 1, 13*time.Hour + 20*time.Minute - time.Hour},
		{"not counted from before we had it", leaf(-time.Minute, 90*time.Second), start, 0, 20 * time.Second},
		{"found in storage", leaf(-12*time.Hour, 24*time.Hour), time.Time{}, 0, 4 * time.Hour},
		{"obtained before it was valid", leaf(time.Hour, 3*time.Hour), start, 0, 3 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := newSpan(tt.leaf, tt.obtained).renewal(tt.jitter).Sub(start); got.Round(time.Millisecond) != tt.want {
				t.Errorf("renewed after %v, want %v", got, tt.want)
			}
		})
	}
}

// TestRetry is the specification of the pause after failures.
func TestRetry(t *testing.T) {
	from := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name     string
		life     time.Duration
		left     time.Duration
		failures int
		jitter   float64
		want     time.Duration
	}{
		{"the first", 24 * time.Hour, 8 * time.Hour, 1, 0, time.Second},
		{"the second", 24 * time.Hour, 8 * time.Hour, 2, 0, 2 * time.Second},
		{"the sixth", 24 * time.Hour, 8 * time.Hour, 6, 0, 32 * time.Second},
		{"half of it by jitter", 24 * time.Hour, 8 * time.Hour, 6, 1, 16 * time.Second},
		{"five minutes at most", 24 * time.Hour, 8 * time.Hour, 1000, 0, 5 * time.Minute},
		{"a twentieth of the life", time.Hour, 20 * time.Minute, 1000, 0, 3 * time.Minute},
		{"a third of what is left", time.Hour, 3 * time.Minute, 1000, 0, time.Minute},
		{"less than a second, for a short life", 10 * time.Second, 3 * time.Second, 1, 0, 500 * time.Millisecond},
		{"never none", 10 * time.Second, time.Millisecond, 1, 0, leastPause},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := span{from, from.Add(tt.life)}
			if got := s.retry(tt.failures, s.to.Add(-tt.left), tt.jitter); got != tt.want {
				t.Errorf("pause %v, want %v", got, tt.want)
			}
		})
	}
}

// A timer stops while the machine sleeps, so every wait is short and checks the wall
// clock.
func TestWaitsAreSlices(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name string
		at   time.Time
		want time.Duration
	}{
		{"far", now.Add(24 * time.Hour), wallSlice},
		{"near", now.Add(time.Second), time.Second},
		{"past", now.Add(-time.Hour), 0},
		{"past by the wall alone", now.Add(-time.Hour).Round(0), 0},
	} {
		if got := slice(now, tt.at); got != tt.want {
			t.Errorf("%s: wait %v, want %v", tt.name, got, tt.want)
		}
	}
}
