package files

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"strings"

	"ambassador/certs"
)

// wanted is what a file should have.
type wanted string

const (
	certificateFile wanted = "certificate"
	keyFile         wanted = "private key"
	listFile        wanted = "revocation list"
)

// begin is the line that such a file has in PEM.
func (w wanted) begin() string {
	switch w {
	case keyFile:
		return "-----BEGIN PRIVATE KEY-----"
	case listFile:
		return "-----BEGIN X509 CRL-----"
	}
	return "-----BEGIN CERTIFICATE-----"
}

// otherFix is the fix if a certificate or a key is there instead.
func (w wanted) otherFix() string {
	if w == listFile {
		return "give the revocation list that the CA publishes"
	}
	return "are certificate and key interchanged?"
}

// notRead says what a file is that has nothing we can use, and which command
// converts it.
func notRead(b []byte, w wanted) error {
	if name, fix := formatOf(b, w); name != "" {
		return fmt.Errorf("it is %s, not a %s; %s", name, w, fix)
	}
	return fmt.Errorf("there is no %s in it; it must be in DER or in PEM (%s)", w, w.begin())
}

// otherBlock is notRead for PEM whose first block has another type.
func otherBlock(kind string, w wanted) error {
	switch {
	case kind == "PKCS7" || kind == "CMS":
		return fmt.Errorf("it is PKCS #7 (%s), which is not read; convert it: openssl pkcs7 -print_certs -in FILE -out NEWFILE", kind)
	case strings.HasSuffix(kind, "CERTIFICATE REQUEST"):
		return fmt.Errorf("there is a %s in it, but no %s; %s", kind, w, fixRequest)
	}
	return fmt.Errorf("there is a %s in it, but no %s", kind, w)
}

const fixRequest = "give the certificate that the CA has issued for this request"

// What the formats that are told apart by their first bytes begin with.
var (
	magicJKS   = []byte{0xfe, 0xed, 0xfe, 0xed}
	magicJCEKS = []byte{0xce, 0xce, 0xce, 0xce}
	bodyPKCS12 = []byte{2, 1, 3, 0x30}                                      // version 3, and a SEQUENCE
	bodyPKCS7  = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7}     // 1.2.840.113549.1.7…
	utf16Begin = [][]byte{[]byte("B\x00E\x00G\x00I"), []byte("\x00B\x00E")} // without a byte order mark
)

// formatOf names the format of a file that has nothing of what is wanted, and the
// fix; empty if the format is not known.
func formatOf(b []byte, w wanted) (name, fix string) {
	text := strings.TrimSpace(string(certs.Text(b)))
	switch {
	case bytes.HasPrefix(b, magicJKS):
		return "a Java key store (JKS)", fixKeyStore("JKS")
	case bytes.HasPrefix(b, magicJCEKS):
		return "a Java key store (JCEKS)", fixKeyStore("JCEKS")
	case isDER(b):
		return formatOfDER(b, w)
	case bytes.Contains(b, utf16Begin[0]) || bytes.Contains(b, utf16Begin[1]):
		return "a text in UTF-16 without a byte order mark", "convert it: iconv -f utf-16le -t utf-8 FILE > NEWFILE"
	case strings.HasPrefix(text, "LS0tLS1CRUdJTi"), strings.HasPrefix(text, "MII"):
		return "base64 of the real file", "decode it: base64 -d FILE > NEWFILE"
	case strings.Contains(text, "BEGIN ") && strings.Contains(text, "END ") && !strings.Contains(text, string(armorBegin)):
		return "a text whose dashes were changed", "write five hyphens before and behind BEGIN … and END …, as in " + w.begin()
	case strings.HasPrefix(text, "<"):
		return "a web page (HTML or XML)", "download the " + string(w) + " itself"
	case strings.HasPrefix(text, "ssh-"), strings.HasPrefix(text, "ecdsa-sha2-"), strings.HasPrefix(text, "PuTTY-User-Key-File"):
		return "a key for ssh", "give the file that was made for TLS"
	}
	return "", ""
}

func fixKeyStore(kind string) string {
	return "convert it: keytool -importkeystore -srcstoretype " + kind + " -srckeystore FILE -destkeystore NEWFILE -deststoretype PKCS12; " +
		"then give NEWFILE as pkcs12, or as ca if it is a trust store"
}

// formatOfDER is formatOf for DER, and for BER.
func formatOfDER(b []byte, w wanted) (name, fix string) {
	switch content := contentOf(b); {
	case bytes.HasPrefix(content, bodyPKCS12):
		return "PKCS #12", "give it as pkcs12 instead of cert and key"
	case bytes.HasPrefix(content, bodyPKCS7):
		return "PKCS #7", "convert it: openssl pkcs7 -inform der -print_certs -in FILE -out NEWFILE"
	}
	if _, err := x509.ParseCertificate(b); err == nil {
		return "a certificate", w.otherFix()
	}
	if isKeyDER(b) {
		return "a private key", w.otherFix()
	}
	if _, err := x509.ParseCertificateRequest(b); err == nil {
		return "a certificate request", fixRequest
	}
	if _, err := x509.ParseRevocationList(b); err == nil {
		return "a revocation list", "give it as crl"
	}
	if _, err := x509.ParsePKIXPublicKey(b); err == nil {
		return "a public key", "give the " + string(w) + " itself"
	}
	return "", ""
}

// isKeyDER reports whether b is a private key, encrypted or not.
func isKeyDER(b []byte) bool {
	var encrypted encryptedKey
	if _, err := asn1.Unmarshal(b, &encrypted); err == nil {
		return true
	}
	_, err := parseKeyDER(b)
	return err == nil
}

// contentOf returns what is inside of the first element, behind its tag and length.
// The length is not checked: in BER it may be indefinite.
func contentOf(b []byte) []byte {
	if len(b) < 2 {
		return nil
	}
	skip := 2
	if b[1] > 0x80 {
		skip += int(b[1] & 0x7f)
	}
	return b[min(skip, len(b)):]
}
