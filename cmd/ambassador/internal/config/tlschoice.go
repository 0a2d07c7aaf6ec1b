package config

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"

	"ambassador/certs"
)

// TLSChoiceSection is the part of an upstream's tls that says what our ClientHello
// offers, and how we treat what old servers do. It is embedded in TLSSection.
type TLSChoiceSection struct {
	MinVersion, MaxVersion string
	Ciphers, Curves        []string
	PostQuantum            string
	Resumption             string
	HoldHalfClose          bool
	UnsafeMinVersion       bool
	UnsafeCiphers          bool
	UnsafeRenegotiation    bool
}

// The values of tls.post_quantum and tls.resumption.
const (
	choiceAuto = "auto"
	choiceOff  = "off"
)

func (t *TLSChoiceSection) fields() []field {
	return []field{
		enumField("min_version", "", &t.MinVersion, "1.0", "1.1", "1.2", "1.3").or("1.2", "; less than that needs unsafe_min_version"),
		enumField("max_version", "", &t.MaxVersion, "1.0", "1.1", "1.2", "1.3").or("1.3"),
		listField("ciphers", "The cipher suites offered up to TLS 1.2, by their IANA or OpenSSL names; the order is ours. Default: the secure ones.", &t.Ciphers, checkCipher),
		listField("curves", "The key exchanges offered: X25519, P-256, P-384, P-521, X25519MLKEM768, SecP256r1MLKEM768, SecP384r1MLKEM1024; the order is ours. Default: all.", &t.Curves, checkCurve),
		enumField("post_quantum", "auto offers post-quantum keys, and for an hour no more to an address whose server, authenticated, chose another key exchange. off never offers them: some firewalls drop the larger hello.", &t.PostQuantum, choiceAuto, choiceOff).or(choiceAuto),
		enumField("resumption", "auto resumes TLS sessions, and for ten minutes no more with an address whose server refused one; the refused handshake is repeated in full at once. off never resumes.", &t.Resumption, choiceAuto, choiceOff).or(choiceAuto),
		boolField("hold_half_close", "Passes the client's end on to the server only when the server has ended, too, or has sent nothing for 30 s. Many servers drop the rest of their answer when they hear close_notify, as TLS 1.2 demands.", &t.HoldHalfClose).or(false),
		boolField("unsafe_min_version", "Allows a min_version below 1.2.", &t.UnsafeMinVersion),
		boolField("unsafe_ciphers", "Allows ciphers that are broken or have no forward secrecy (RSA key exchange, CBC with SHA-256, 3DES, RC4). Without ciphers, all of them but RC4 are offered, after the secure ones.", &t.UnsafeCiphers),
		boolField("unsafe_renegotiation", "Lets the server renegotiate up to TLS 1.2, as some do for a client certificate. Its certificate must stay the same.", &t.UnsafeRenegotiation),
	}
}

// cipherSuite is a suite of crypto/tls that can be chosen: those of TLS 1.3 cannot.
type cipherSuite struct {
	*tls.CipherSuite
	openSSL string
}

// cipherSuites are the suites that can be chosen, the secure ones first.
func cipherSuites() (out []cipherSuite) {
	for _, c := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		if slices.Contains(c.SupportedVersions, tls.VersionTLS12) {
			out = append(out, cipherSuite{c, openSSLName(c.Name)})
		}
	}
	return out
}

// openSSLName is the name that `openssl ciphers` has for a suite of crypto/tls.
func openSSLName(iana string) string {
	exchange, bulk, _ := strings.Cut(strings.TrimPrefix(iana, "TLS_"), "_WITH_")
	for _, r := range [][2]string{{"AES_128_CBC_", "AES128-"}, {"AES_256_CBC_", "AES256-"}, {"AES_128_GCM_", "AES128-GCM-"}, {"AES_256_GCM_", "AES256-GCM-"},
		{"3DES_EDE_CBC_", "DES-CBC3-"}, {"RC4_128_", "RC4-"}, {"CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"}} {
		bulk = strings.Replace(bulk, r[0], r[1], 1)
	}
	if exchange == "RSA" {
		return bulk
	}
	return strings.ReplaceAll(exchange, "_", "-") + "-" + bulk
}

func findCipher(name string) (cipherSuite, bool) {
	all := cipherSuites()
	i := slices.IndexFunc(all, func(c cipherSuite) bool { return strings.EqualFold(name, c.Name) || strings.EqualFold(name, c.openSSL) })
	if i < 0 {
		return cipherSuite{}, false
	}
	return all[i], true
}

// absentExchanges are the key exchanges and authentications that crypto/tls does not
// have, by the prefixes of the suites' names.
var absentExchanges = []struct {
	prefixes []string
	what     string
}{
	{[]string{"DHE-", "EDH-", "TLS_DHE_"}, "DHE (Diffie-Hellman without elliptic curves)"},
	{[]string{"ECDH-", "TLS_ECDH_", "DH-", "TLS_DH_", "ADH-", "AECDH-"}, "static or anonymous Diffie-Hellman"},
	{[]string{"PSK-", "RSA-PSK-", "DHE-PSK-", "ECDHE-PSK-", "TLS_PSK_", "TLS_RSA_PSK_", "TLS_ECDHE_PSK_"}, "pre-shared keys"},
	{[]string{"SRP-", "TLS_SRP_"}, "SRP"},
	{[]string{"NULL-", "TLS_RSA_WITH_NULL_", "ECDHE-RSA-NULL-", "ECDHE-ECDSA-NULL-"}, "suites without encryption"},
}

func checkCipher(name string) error {
	if _, ok := findCipher(name); ok {
		return nil
	}
	upper := strings.ToUpper(name)
	if slices.ContainsFunc(tls.CipherSuites(), func(c *tls.CipherSuite) bool { return c.Name == upper }) {
		return fmt.Errorf("%s is of TLS 1.3, whose suites are always offered; remove it, or set max_version: \"1.2\"", name)
	}
	for _, absent := range absentExchanges {
		if slices.ContainsFunc(absent.prefixes, func(p string) bool { return strings.HasPrefix(upper, p) }) {
			return fmt.Errorf("%s needs %s, which Go's TLS does not have; let the server offer ECDHE, or RSA key exchange", name, absent.what)
		}
	}
	var known []string
	for _, c := range cipherSuites() {
		known = append(known, c.openSSL)
	}
	return fmt.Errorf("%q is no cipher suite of Go's TLS; it has %s", name, strings.Join(known, ", "))
}

// keyExchanges are the names of tls.curves. The names of OpenSSL count, too.
var keyExchanges = map[string]tls.CurveID{
	"x25519": tls.X25519, "p-256": tls.CurveP256, "prime256v1": tls.CurveP256, "secp256r1": tls.CurveP256,
	"p-384": tls.CurveP384, "secp384r1": tls.CurveP384, "p-521": tls.CurveP521, "secp521r1": tls.CurveP521,
	"x25519mlkem768": tls.X25519MLKEM768, "secp256r1mlkem768": tls.SecP256r1MLKEM768, "secp384r1mlkem1024": tls.SecP384r1MLKEM1024,
}

func checkCurve(name string) error {
	if _, ok := keyExchanges[strings.ToLower(name)]; ok {
		return nil
	}
	return fmt.Errorf("%q is no key exchange of Go's TLS; it has X25519, P-256, P-384, P-521, X25519MLKEM768, SecP256r1MLKEM768 and SecP384r1MLKEM1024", name)
}

// classicalExchanges are offered with post_quantum: off.
var classicalExchanges = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}

// validate finds what no key by itself shows; path is that of tls.
func (t *TLSChoiceSection) validate(d *decoder, path string) {
	low, high := t.MinVersion, t.MaxVersion
	switch {
	case low < "1.2" && !t.UnsafeMinVersion:
		d.failAt(path+".min_version", "%s is broken; use 1.2, or set unsafe_min_version: true", low)
	case high < low:
		d.failAt(path+".max_version", "%s is below min_version (%s); set that lower, too, which below 1.2 needs unsafe_min_version: true", high, low)
	case low == "1.3" && t.UnsafeRenegotiation:
		d.failAt(path+".unsafe_renegotiation", "TLS 1.3, which min_version demands, has no renegotiation; remove one of them")
	case low == "1.3" && (t.UnsafeCiphers || len(t.Ciphers) > 0):
		d.failAt(path, "ciphers and unsafe_ciphers choose suites up to TLS 1.2, and min_version demands 1.3; remove one of them")
	}
	for i, name := range t.Ciphers {
		if c, ok := findCipher(name); ok && c.Insecure && !t.UnsafeCiphers {
			d.failAt(fmt.Sprintf("%s.ciphers[%d]", path, i), "%s is broken or has no forward secrecy; use another, or set unsafe_ciphers: true", name)
		}
	}
	for i, name := range t.Curves {
		id, ok := keyExchanges[strings.ToLower(name)]
		if ok && t.PostQuantum == choiceOff && !slices.Contains(classicalExchanges, id) {
			d.failAt(fmt.Sprintf("%s.curves[%d]", path, i), "%s is post-quantum, and post_quantum is off; remove one of them", name)
		}
	}
}

// translate sets what the section chooses.
func (t *TLSChoiceSection) translate(p *certs.ClientPolicy) {
	p.MinVersion, p.MaxVersion = tlsVersions()[t.MinVersion], tlsVersions()[t.MaxVersion]
	p.NoResumption = t.Resumption == choiceOff
	p.Renegotiate = t.UnsafeRenegotiation
	for _, name := range t.Ciphers {
		if c, ok := findCipher(name); ok {
			p.CipherSuites = append(p.CipherSuites, c.ID)
		}
	}
	if t.UnsafeCiphers && len(t.Ciphers) == 0 {
		for _, c := range cipherSuites() {
			if !strings.Contains(c.Name, "_RC4_") { // old servers prefer it, and it must not be used (RFC 7465)
				p.CipherSuites = append(p.CipherSuites, c.ID)
			}
		}
	}
	for _, name := range t.Curves {
		p.Curves = append(p.Curves, keyExchanges[strings.ToLower(name)])
	}
	if t.PostQuantum == choiceOff && len(t.Curves) == 0 {
		p.Curves = slices.Clone(classicalExchanges)
	}
}

// warnings are the protections that the section takes away; path is that of tls.
func (t *TLSChoiceSection) warnings(path string) (out []string) {
	for _, w := range []struct {
		set  bool
		text string
	}{
		{t.UnsafeMinVersion, "unsafe_min_version: TLS older than 1.2 may be spoken"},
		{t.UnsafeCiphers, "unsafe_ciphers: broken ciphers, and those without forward secrecy, may be used"},
		{t.UnsafeRenegotiation, "unsafe_renegotiation: the server may renegotiate TLS, even without RFC 5746"},
	} {
		if w.set {
			out = append(out, path+"."+w.text)
		}
	}
	return out
}
