package files

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func sampleFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// inDER is the first block of a sample.
func inDER(t testing.TB, name string) []byte {
	t.Helper()
	block, _ := pem.Decode(sampleFile(t, name))
	return block.Bytes
}

// A format that is not read is named, with the command that converts it.
func TestFormatsAreNamed(t *testing.T) {
	ca, key := sampleFile(t, "ca.crt"), newPair(t, 1, time.Hour).key
	ber := append([]byte{0x30, 0x80}, append(contentOf(sampleFile(t, "pair.p12")), 0, 0)...)
	request := []byte("-----BEGIN NEW CERTIFICATE REQUEST-----\nAAAA\n-----END NEW CERTIFICATE REQUEST-----\n")
	for _, tt := range []struct {
		name    string
		content []byte
		want    string
	}{
		{"JKS", sampleFile(t, "java.jks"), "it is a Java key store (JKS), not a certificate; convert it: keytool -importkeystore -srcstoretype JKS"},
		{"JCEKS", sampleFile(t, "java.jceks"), "keytool -importkeystore -srcstoretype JCEKS"},
		{"PKCS #7", sampleFile(t, "chain.p7b"), "it is PKCS #7 (PKCS7), which is not read; convert it: openssl pkcs7 -print_certs -in FILE"},
		{"PKCS #7 in DER", sampleFile(t, "chain-der.p7b"), "it is PKCS #7, not a certificate; convert it: openssl pkcs7 -inform der -print_certs"},
		{"PKCS #12", sampleFile(t, "pair.p12"), "it is PKCS #12, not a certificate; give it as pkcs12 instead of cert and key"},
		{"PKCS #12 in BER", ber, "give it as pkcs12 instead of cert and key"},
		{"base64", []byte(base64.StdEncoding.EncodeToString(ca)), "base64 -d FILE"},
		{"base64 without lines", bytes.ReplaceAll(ca, []byte("-----"), nil)[len("BEGIN CERTIFICATE\n"):], "base64 -d FILE"},
		{"dashes of a word processor", []byte(strings.ReplaceAll(string(ca), "-----", "—–")), "five hyphens"},
		{"UTF-16 without a mark", forms[4].make(string(ca))[2:], "iconv -f utf-16le"},
		{"a web page", []byte("<!DOCTYPE html><title>Sign in</title>"), "a web page"},
		{"a key for ssh", []byte("ssh-ed25519 AAAA x@y"), "a key for ssh"},
		{"a request", request, "give the certificate that the CA has issued"},
		{"a revocation list", sampleFile(t, "list.der"), "it is a revocation list, not a certificate; give it as crl"},
		{"a key", key, "interchanged"},
		{"a key in DER", first(t, key).Bytes, "interchanged"},
		{"nothing", nil, "there is no certificate in it; it must be in DER or in PEM (-----BEGIN CERTIFICATE-----)"},
	} {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, tt.content)
		if _, _, err := Load(Files{Cert: path, Key: "testdata/explicit.key"}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s as cert: %v", tt.name, err)
		}
		if strings.HasPrefix(tt.name, "PKCS #12") {
			continue
		}
		if _, _, err := Load(Files{CA: path}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s as ca: %v", tt.name, err)
		}
	}
	path := filepath.Join(t.TempDir(), "ber.p12")
	write(t, path, ber)
	if _, err := parseLists(inDER(t, "ca.crt")); err == nil || !strings.Contains(err.Error(), "it is a certificate, not a revocation list; give the revocation list that the CA publishes") {
		t.Errorf("a certificate as crl: %v", err)
	}
	if _, _, err := Load(Files{PKCS12: path}); err == nil || !strings.Contains(err.Error(), "in BER, of which only DER is read; convert it: openssl pkcs12 -in FILE -nodes") {
		t.Errorf("BER as pkcs12: %v", err)
	}
	if _, _, err := Load(Files{PKCS12: "testdata/java.jks"}); err == nil || !strings.Contains(err.Error(), "keytool") {
		t.Errorf("JKS as pkcs12: %v", err)
	}
}

// DER is read for certificates, keys and roots.
func TestDER(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "leaf.der"), filepath.Join(dir, "leaf.key")
	write(t, cert, concat(inDER(t, "leaf.crt"), inDER(t, "ca.crt")))
	write(t, key, inDER(t, "default.key"))
	got, roots, err := Load(Files{Cert: cert, Key: key, CA: cert, PasswordFile: secret(t, testPassword)})
	if err != nil || len(got.Certificate) != 2 || !roots.Pool.Equal(poolOf(t, "leaf.crt", "ca.crt")) {
		t.Errorf("encrypted: %v", err)
	}
	if _, _, err := Load(Files{Cert: cert, Key: key}); err == nil || !strings.Contains(err.Error(), "give its password in password_file") {
		t.Errorf("without its password: %v", err)
	}
	p := newPair(t, 3, time.Hour)
	write(t, cert, first(t, p.cert).Bytes)
	write(t, key, first(t, p.key).Bytes)
	if _, _, err := Load(Files{Cert: cert, Key: key}); err != nil {
		t.Errorf("plain: %v", err)
	}
	signer, err := parseKey(p.key, nil)
	if err != nil {
		t.Fatal(err)
	}
	short, err := x509.MarshalECPrivateKey(signer.(*ecdsa.PrivateKey))
	if err != nil || len(short) > 127 {
		t.Fatalf("%d bytes, %v", len(short), err)
	}
	write(t, key, short)
	if _, _, err := Load(Files{Cert: cert, Key: key}); err != nil {
		t.Errorf("of less than 128 bytes: %v", err)
	}
	write(t, cert, append(first(t, p.cert).Bytes, 0x30, 0x82))
	if _, _, err := Load(Files{Cert: cert, Key: key}); err == nil || !strings.Contains(err.Error(), "certificate 2 of the file, in DER") {
		t.Errorf("cut: %v", err)
	}
}

// A key that spells out its curve is read if that has a name. What crypto/tls cannot
// use is named.
func TestUncommonKeys(t *testing.T) {
	for _, tt := range []struct{ cert, key, want string }{
		{"explicit-named.crt", "explicit.key", ""},
		{"explicit384-named.crt", "explicit384.key", ""},
		{"explicit-named.crt", "explicit384.key", "does not match"},
		{"explicit.crt", "explicit.key", "its key spells out its curve (explicit parameters), which RFC 5480, 2.1.1, forbids; name the curve in the key (openssl ec -param_enc named_curve"},
		{"pss.crt", "pss.key", "it is RSA-PSS (rsassaPss), which cannot be used here"},
	} {
		_, _, err := Load(Files{Cert: "testdata/" + tt.cert, Key: "testdata/" + tt.key})
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.key, err)
		}
	}
	other := bytes.Replace(inDER(t, "explicit.key"), []byte{0x5a, 0xc6, 0x35, 0xd8}, []byte{0x5a, 0xc6, 0x35, 0xd9}, 1) // of the curve's b
	if _, err := parseKeyDER(other); err == nil || !strings.Contains(err.Error(), "none of P-256, P-384 and P-521") {
		t.Errorf("another curve: %v", err)
	}
	sec1 := inDER(t, "secp256k1.key")
	for _, der := range [][]byte{sec1, marshal(t, pkcs8Key{0, pkix.AlgorithmIdentifier{Algorithm: oidEC, Parameters: asn1.RawValue{FullBytes: []byte{6, 5, 43, 129, 4, 0, 10}}}, sec1})} {
		if _, err := parseKeyDER(der); err == nil || !strings.Contains(err.Error(), "it is EC on another curve, which cannot be used here") {
			t.Errorf("secp256k1: %v", err)
		}
	}
	damaged := marshal(t, pkcs8Key{0, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}}, []byte("x")})
	if _, err := parseKeyDER(damaged); err == nil || strings.Contains(err.Error(), "cannot be used here") {
		t.Errorf("a damaged RSA key: %v", err)
	}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func poolOf(t *testing.T, names ...string) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	for _, name := range names {
		if !pool.AppendCertsFromPEM(sampleFile(t, name)) {
			t.Fatal(name)
		}
	}
	return pool
}

// A root that cannot be used is left out and named; the others are used.
func TestUnusableRoots(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bundle.pem")
	write(t, path, concat(sampleFile(t, "negative.crt"), sampleFile(t, "ca.crt"), sampleFile(t, "pss.crt"), sampleFile(t, "explicit.crt"), sampleFile(t, "trusted-mail.crt")))
	_, roots, err := Load(Files{CA: path})
	if err != nil || !roots.Pool.Equal(poolOf(t, "ca.crt")) || roots.Clients != nil {
		t.Fatalf("%+v, %v", roots, err)
	}
	for i, want := range []string{
		`certificate 1 of the file ("CN=files test negative") is not used as a root: `,
		`certificate 3 of the file ("CN=files test PSS") is not used as a root: its key is RSA-PSS`,
		`certificate 4 of the file ("CN=files test explicit") is not used as a root: its key spells out its curve`,
		`certificate 5 of the file ("CN=files test CA") is not used as a root: its trust settings allow neither servers nor clients; if they should`,
	} {
		if len(roots.Unused) != 4 || !strings.HasPrefix(roots.Unused[i], want) {
			t.Errorf("unused: %q\nwant %d: %s", roots.Unused, i, want)
		}
	}
	write(t, path, bytes.Repeat(sampleFile(t, "negative.crt"), 3))
	if _, _, err := Load(Files{CA: path}); err == nil || !strings.Contains(err.Error(), `none of its certificates (3) can be used; certificate 1 of the file ("CN=files test negative")`) {
		t.Errorf("no root: %v", err)
	}
	write(t, path, concat(sampleFile(t, "ca.crt"), bytes.Repeat(sampleFile(t, "negative.crt"), 30)))
	if _, roots, err := Load(Files{CA: path}); err != nil || len(roots.Unused) != maxUnused+1 || roots.Unused[maxUnused] != "and 10 more certificates are not used as roots" {
		t.Errorf("many: %v", err)
	}
	// In a chain each one is needed.
	write(t, path, concat(sampleFile(t, "explicit-named.crt"), sampleFile(t, "negative.crt")))
	if _, _, err := Load(Files{Cert: path, Key: "testdata/explicit.key"}); err == nil || !strings.Contains(err.Error(), `certificate 2 of the file ("CN=files test negative")`) {
		t.Errorf("chain: %v", err)
	}
}

// Trust settings are kept as OpenSSL keeps them: verify -purpose sslserver, sslclient.
func TestTrustSettings(t *testing.T) {
	for _, tt := range []struct {
		file             string
		servers, clients bool
		unused           string
	}{
		{"trusted.crt", true, true, ""},
		{"trusted-server.crt", true, false, ""},
		{"rejected-server.crt", false, true, "no certificate of the file verifies servers"},
	} {
		_, roots, err := Load(Files{CA: "testdata/" + tt.file})
		if err != nil {
			t.Errorf("%s: %v", tt.file, err)
			continue
		}
		der, err := parseRoots(concat(inDER(t, tt.file), inDER(t, "leaf.crt")), nil)
		if err != nil || (len(der.servers) == 2) != tt.servers || (len(der.clients) == 2) != tt.clients {
			t.Errorf("%s in DER: %+v, %v", tt.file, der, err)
		}
		want := map[bool]*x509.CertPool{true: poolOf(t, "ca.crt"), false: x509.NewCertPool()}
		clients := roots.Clients
		if clients == nil {
			clients = roots.Pool
		}
		if !roots.Pool.Equal(want[tt.servers]) || !clients.Equal(want[tt.clients]) || strings.Contains(strings.Join(roots.Unused, "\n"), "no certificate") != (tt.unused != "") {
			t.Errorf("%s: %+v", tt.file, roots)
		}
	}
	if _, _, err := Load(Files{CA: "testdata/trusted-mail.crt"}); err == nil || !strings.Contains(err.Error(), "openssl x509 -clrtrust") {
		t.Errorf("for mail: %v", err)
	}
	damaged := encode(trustedType, append(inDER(t, "ca.crt"), 0x30, 0x03, 1))
	if _, err := parseRoots(damaged, nil); err == nil || !strings.Contains(err.Error(), "its trust settings are damaged") {
		t.Errorf("damaged: %v", err)
	}
	// A mixed file once lost the certificate with trust settings in silence.
	both, err := parseRoots(concat(sampleFile(t, "leaf.crt"), sampleFile(t, "trusted.crt")), nil)
	if err != nil || len(both.servers) != 2 {
		t.Errorf("mixed: %v", err)
	}
	if chain, err := parseCertificates(sampleFile(t, "rejected-server.crt")); err != nil || len(chain) != 1 {
		t.Errorf("as a chain: %v", err)
	}
}

// A PKCS #12 file is read as roots, whatever wrote it.
func TestTrustStores(t *testing.T) {
	right, wrong := secret(t, testPassword), secret(t, "wrong")
	for _, tt := range []struct{ file, password, want string }{ // want: an error
		{"java.p12", right, ""},
		{"nokey.p12", right, ""}, // openssl pkcs12 -export -nokeys
		{"nomac.p12", right, ""},
		{"pair.p12", right, ""},
		{"java.p12", wrong, "the password does not open it"},
		{"nokey.p12", wrong, "the password does not open it"},
		{"nomac.p12", wrong, "it has no MAC, and without one a wrong password looks like this, too: check password_file"},
		{"java.p12", "", "it has a password; give that in password_file of an identity, files: {ca, password_file}, or convert it to PEM: openssl pkcs12 -nokeys"},
		{"open.p12", "", "it has a key with its chain, and no root among them"},
	} {
		_, roots, err := Load(Files{CA: "testdata/" + tt.file, PasswordFile: tt.password})
		switch {
		case tt.want != "":
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", tt.file, err)
			}
		case err != nil || !roots.Pool.Equal(poolOf(t, map[bool]string{true: "leaf.crt", false: "ca.crt"}[tt.file == "nokey.p12"])):
			t.Errorf("%s: %v, %+v", tt.file, err, roots)
		}
	}
}

// Only roots and revocation lists are an identity that verifies.
func TestRootsAndLists(t *testing.T) {
	f := Files{CA: "testdata/ca.crt", CRL: "testdata/list.crl"}
	cert, roots, err := Load(f)
	if err != nil || cert != nil || roots == nil || roots.Pool == nil || roots.Revoked == nil || !f.OnlyRoots() {
		t.Errorf("%v, %+v, %v", cert, roots, err)
	}
}

// Any input gives roots or an error, and a key or an error, without a panic.
func FuzzParseRoots(f *testing.F) {
	names, _ := filepath.Glob("testdata/*")
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && len(b) < 4<<10 {
			f.Add(b)
			if block, _ := pem.Decode(b); block != nil {
				f.Add(block.Bytes)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if isPKCS12(b) {
			return // see FuzzRepacked
		}
		l, err := parseRoots(b, []byte("x"))
		if (l == nil) != (err != nil) || err == nil && len(l.servers)+len(l.clients) == 0 {
			t.Errorf("%+v, %v", l, err)
		}
		if l.roots(nil) == nil && err == nil {
			t.Error("no roots and no error")
		}
		if key, err := parseKey(b, nil); (key == nil) != (err != nil) {
			t.Errorf("%v, %v", key, err)
		}
	})
}

// What is repacked is what was in the file; damage stays damage.
func FuzzRepacked(f *testing.F) {
	names, _ := filepath.Glob("testdata/*.p12")
	for _, name := range names {
		f.Add(sampleFile(f, filepath.Base(name)))
	}
	key, err := standInKey()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		sealed := repacked(b, []byte("x"))
		if again := repacked(sealed, []byte("x")); !bytes.Equal(again, sealed) {
			t.Error("it is sealed twice")
		}
		if more := repacked(b, nil, key); !bytes.Equal(more, b) && len(more) < 48 { // the key has 48 bytes
			t.Errorf("%x", more)
		}
	})
}

func first(t testing.TB, text []byte) *pem.Block {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("no PEM")
	}
	return block
}
