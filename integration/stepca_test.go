package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.step.sm/crypto/jose"
)

// stepBinary builds smallstep's own server, once: it takes minutes where Go's
// cache does not have it.
var stepBinary = sync.OnceValues(func() (string, error) {
	out := filepath.Join(scratch, "step-ca")
	cmd := exec.Command("go", "build", "-o", out, "github.com/smallstep/certificates/cmd/step-ca")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // else it wants headers of a smart card library
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build step-ca: %w\n%s", err, text)
	}
	return out, nil
})

// stepRoot is a root with an intermediate that signs.
type stepRoot struct {
	*authority
	intermediate *authority
}

func newStepRoot(t testing.TB, name string) *stepRoot {
	t.Helper()
	root, err := newAuthority(name)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: name + " intermediate"},
		NotBefore: root.cert.NotBefore, NotAfter: root.cert.NotAfter, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, template, root.cert, &key.PublicKey, root.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &stepRoot{root, &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}}
}

// server is a server's certificate with its chain.
func (r *stepRoot) server(t testing.TB) *tls.Certificate {
	t.Helper()
	p, err := r.intermediate.issue(leaf{cn: "server", dns: []string{"localhost", "127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(append(p.cert, r.intermediate.pem...), p.key)
	if err != nil {
		t.Fatal(err)
	}
	return &cert
}

func poolOf(roots ...*stepRoot) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r.cert)
	}
	return pool
}

// stepCA is a genuine step-ca on a loopback port.
type stepCA struct {
	t        testing.TB
	dir      string
	port     string
	password string // of the provisioner, a file
	key      json.RawMessage
	secret   string // the provisioner's key, encrypted
	process  *process
}

// newStepCA makes a folder and starts a server on it.
func newStepCA(t testing.TB, root *stepRoot, federated ...*stepRoot) *stepCA {
	t.Helper()
	c := &stepCA{t: t, dir: t.TempDir()}
	const password = "staple battery"
	c.password = writeFile(t, "password", password+"\n")
	var err, portErr error
	c.key, c.secret, err = provisionerKey([]byte(password))
	c.port, portErr = freePort()
	if err = errors.Join(err, portErr); err != nil {
		t.Fatal(err)
	}
	c.start(root, federated...)
	t.Cleanup(c.stop)
	return c
}

// provisionerKey makes a provisioner's key pair as step-ca does, but that the password
// costs 1,000 rounds instead of 600,000: those take seconds in a binary that was built
// with -race on a busy machine, each time that a certificate is asked for.
func provisionerKey(password []byte) (public json.RawMessage, encrypted string, err error) {
	key, err := jose.GenerateJWK("EC", "P-256", "ES256", "sig", "", 0)
	if err != nil {
		return nil, "", err
	}
	if key.KeyID, err = jose.Thumbprint(key); err != nil {
		return nil, "", err
	}
	private, err := json.Marshal(key)
	if err != nil {
		return nil, "", err
	}
	salt := make([]byte, jose.PBKDF2SaltSize)
	rand.Read(salt) //nolint:errcheck // it never fails
	encrypter, err := jose.NewEncrypter(jose.DefaultEncAlgorithm,
		jose.Recipient{Algorithm: jose.PBES2_HS256_A128KW, Key: password, PBES2Count: 1000, PBES2Salt: salt},
		new(jose.EncrypterOptions).WithContentType("jwk+json"))
	if err != nil {
		return nil, "", err
	}
	secret, err := encrypter.Encrypt(private)
	if err != nil {
		return nil, "", err
	}
	if encrypted, err = secret.CompactSerialize(); err != nil {
		return nil, "", err
	}
	public, err = json.Marshal(key.Public())
	return public, encrypted, err
}

func (c *stepCA) file(name string) string { return filepath.Join(c.dir, name) }

func (c *stepCA) url() string { return "https://127.0.0.1:" + c.port }

// fingerprint is a root's, as clients are given it.
func (r *stepRoot) fingerprint() string {
	sum := sha256.Sum256(r.cert.Raw)
	return hex.EncodeToString(sum[:])
}

// identity is the configuration of one that gets certificates of that life.
func (c *stepCA) identity(root *stepRoot, name string, life time.Duration, storage string) string {
	return fmt.Sprintf("{step: {url: %q, fingerprint: %s, provisioner: tests, password_file: %s, names: [%s], lifetime: %s, storage: %s}}",
		c.url(), root.fingerprint(), c.password, name, life, storage)
}

// configure writes the server's whole configuration.
func (c *stepCA) configure(root *stepRoot, federated ...*stepRoot) {
	c.t.Helper()
	write := func(name string, text []byte) string {
		if err := os.WriteFile(c.file(name), text, 0o600); err != nil {
			c.t.Fatal(err)
		}
		return c.file(name)
	}
	der, err := x509.MarshalPKCS8PrivateKey(root.intermediate.key)
	if err != nil {
		c.t.Fatal(err)
	}
	others := []string{}
	for i, r := range federated {
		others = append(others, write(fmt.Sprintf("federated%d.crt", i), r.pem))
	}
	text, err := json.Marshal(map[string]any{
		"root": write("root.crt", root.pem), "federatedRoots": others, "crt": write("intermediate.crt", root.intermediate.pem),
		"key":     write("intermediate.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"address": "127.0.0.1:" + c.port, "dnsNames": []string{"127.0.0.1"},
		"logger": map[string]any{"format": "text"},
		"db":     map[string]any{"type": "bbolt", "dataSource": c.file("db")},
		"authority": map[string]any{
			"claims":       map[string]any{"minTLSCertDuration": "1s", "maxTLSCertDuration": "24h", "defaultTLSCertDuration": "1h"},
			"provisioners": []any{map[string]any{"type": "JWK", "name": "tests", "key": c.key, "encryptedKey": c.secret}},
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	write("ca.json", text)
}

// start starts the server, and returns when it serves.
func (c *stepCA) start(root *stepRoot, federated ...*stepRoot) {
	c.t.Helper()
	binary, err := stepBinary()
	if err != nil {
		c.t.Fatal(err)
	}
	c.configure(root, federated...)
	cmd := exec.Command(binary, c.file("ca.json"))
	cmd.Env = append(os.Environ(), "STEPPATH="+c.dir, "HOME="+c.dir)
	if c.process, err = launch(cmd); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.process.stderr.awaitAfter(0, regexp.MustCompile(`Serving HTTPS on`), patience, c.process.exited); err != nil {
		c.t.Fatalf("step-ca: %v\n%s", err, c.process.stderr)
	}
	err = eventually(patience, func() error {
		conn, err := net.Dial("tcp", "127.0.0.1:"+c.port)
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// stop kills the server: connections to its port are refused.
func (c *stepCA) stop() {
	if c.process != nil && c.process.running() {
		c.process.signal(syscall.SIGKILL)
		c.process.exit(patience)
	}
}
