package config

import (
	"crypto/tls"
	"slices"
	"strings"
	"testing"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/cmdtest"
)

// tlsOf is the policy of upstream u with this tls.
func tlsOf(t *testing.T, keys string) (certs.ClientPolicy, []string) {
	t.Helper()
	f, err := parse(cmdtest.Good + "    tls: {" + keys + "}")
	if err != nil {
		t.Fatal(err)
	}
	p, err := f.Upstreams[0].TLS.policy(Parts{})
	if err != nil {
		t.Fatal(err)
	}
	return p, f.Warnings()
}

func TestChoicesOfTLSReachThePolicy(t *testing.T) {
	for _, c := range []struct {
		keys    string
		ok      func(p certs.ClientPolicy) bool
		warning string
	}{
		{"", func(p certs.ClientPolicy) bool {
			return p.MinVersion == tls.VersionTLS12 && p.MaxVersion == tls.VersionTLS13 && p.CipherSuites == nil && p.Curves == nil && !p.NoResumption
		}, ""},
		{`max_version: "1.2"`, func(p certs.ClientPolicy) bool { return p.MaxVersion == tls.VersionTLS12 }, ""},
		{"unsafe_renegotiation: true", func(p certs.ClientPolicy) bool { return p.Renegotiate }, "upstreams.u.tls.unsafe_renegotiation: "},
		{"resumption: off", func(p certs.ClientPolicy) bool { return p.NoResumption }, ""},
		{"post_quantum: off", func(p certs.ClientPolicy) bool {
			return slices.Equal(p.Curves, []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521})
		}, ""},
		{"post_quantum: off, curves: [P-256]", func(p certs.ClientPolicy) bool { return slices.Equal(p.Curves, []tls.CurveID{tls.CurveP256}) }, ""},
		{"ciphers: [AES128-SHA, rc4-sha], unsafe_ciphers: true", func(p certs.ClientPolicy) bool {
			return slices.Equal(p.CipherSuites, []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_RC4_128_SHA})
		}, "upstreams.u.tls.unsafe_ciphers: "},
		{"unsafe_ciphers: true", func(p certs.ClientPolicy) bool {
			return slices.Contains(p.CipherSuites, tls.TLS_RSA_WITH_AES_256_CBC_SHA) && slices.Contains(p.CipherSuites, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256) &&
				!slices.Contains(p.CipherSuites, tls.TLS_RSA_WITH_RC4_128_SHA)
		}, "upstreams.u.tls.unsafe_ciphers: "},
	} {
		p, warnings := tlsOf(t, c.keys)
		if !c.ok(p) {
			t.Errorf("%s: %+v", c.keys, p)
		}
		if text := strings.Join(warnings, "\n"); (text != "") != (c.warning != "") || !strings.Contains(text, c.warning) {
			t.Errorf("%s: warnings %q, want %q", c.keys, text, c.warning)
		}
	}
}

// The names are those of `openssl ciphers -stdname`.
func TestNamesOfCiphers(t *testing.T) {
	for iana, openSSL := range map[string]string{
		"TLS_RSA_WITH_AES_128_CBC_SHA":                  "AES128-SHA",
		"TLS_RSA_WITH_AES_128_CBC_SHA256":               "AES128-SHA256",
		"TLS_RSA_WITH_AES_256_GCM_SHA384":               "AES256-GCM-SHA384",
		"TLS_RSA_WITH_3DES_EDE_CBC_SHA":                 "DES-CBC3-SHA",
		"TLS_ECDHE_ECDSA_WITH_RC4_128_SHA":              "ECDHE-ECDSA-RC4-SHA",
		"TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA":           "ECDHE-RSA-DES-CBC3-SHA",
		"TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA":          "ECDHE-ECDSA-AES256-SHA",
		"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384":         "ECDHE-RSA-AES256-GCM-SHA384",
		"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256":   "ECDHE-RSA-CHACHA20-POLY1305",
		"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
	} {
		a, okA := findCipher(iana)
		b, okB := findCipher(openSSL)
		if !okA || !okB || a.ID != b.ID {
			t.Errorf("%s is %v %v, %s is %v %v", iana, a.CipherSuite, okA, openSSL, b.CipherSuite, okB)
		}
	}
}
