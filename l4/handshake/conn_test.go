package handshake

import (
	"crypto/tls"
	"testing"
)

// Plaintext alerts of OpenSSL are recognized.
func TestPlainAlert(t *testing.T) {
	for text, want := range map[string]tls.AlertError{
		"\x15\x03\x03\x00\x02\x02\x30":                         48,
		"\x14\x03\x03\x00\x01\x01\x15\x03\x03\x00\x02\x02\x30": 48,
		"\x15\x03\x03\x00\x13\x02\x30":                         0, "\x15\x03\x03\x00\x02\x02\x30\x15": 0, "\x15\x03\x03\x00\x02": 0, "": 0,
	} {
		if got := plainAlert([]byte(text)); got != want {
			t.Errorf("%x: %d, want %d", text, got, want)
		}
	}
}
