package certs

import (
	"testing"
	"time"
)

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 90 * time.Second: "1m30s", 47*time.Hour + 59*time.Minute: "47h59m0s",
		48 * time.Hour: "2 days", 24756*time.Hour + 13*time.Minute: "1031 days",
	} {
		if got := age(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}
