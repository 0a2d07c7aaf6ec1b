package step

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"ambassador/certs"

	"github.com/smallstep/certificates/api"
	"github.com/smallstep/certificates/ca"
	"github.com/smallstep/certificates/errs"
)

const (
	// dialTimeout is short, so that a CA that is up again is noticed soon.
	dialTimeout = 2 * time.Second
	// answerTimeout bounds the wait for the headers of an answer; ctx bounds its body.
	answerTimeout = 8 * time.Second
	maxRoot       = 64 << 10
)

// conn is a client of the CA for one attempt. Its owner closes it.
type conn struct {
	url    string
	roots  []*x509.Certificate
	client *ca.Client
	plain  *http.Transport // of client: sends no client certificate
}

// withoutDefaults keeps smallstep's client from sending the identity below
// $STEPPATH. A package variable is the only switch for that.
var withoutDefaults = sync.OnceFunc(func() { ca.DisableIdentity = true })

// dial makes a conn. If no root is known yet, it fetches the one with the
// fingerprint.
func (i *Issuer) dial(ctx context.Context) (*conn, error) {
	withoutDefaults()
	c := &conn{url: i.cfg.URL, roots: i.known()}
	if len(c.roots) == 0 {
		root, err := bootstrap(ctx, i.cfg.URL, i.cfg.Fingerprint)
		if err != nil {
			return nil, err
		}
		c.roots = []*x509.Certificate{root}
	}
	c.plain = c.transport(nil)
	var err error
	c.client, err = ca.NewClient(c.url, ca.WithTransport(c.plain))
	return c, err
}

func (c *conn) close() { c.plain.CloseIdleConnections() }

// transport trusts the known roots and uses no proxy.
func (c *conn) transport(cert *tls.Certificate) *http.Transport {
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: certs.NewPool(c.roots)}
	if cert != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return newTransport(config)
}

func newTransport(config *tls.Config) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout}
	dialer.SetMultipathTCP(false)
	return &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: config, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: answerTimeout, ResponseHeaderTimeout: answerTimeout, MaxIdleConns: 2}
}

// bootstrap fetches the root with that fingerprint. The server is not verified,
// because nothing is known of it yet: the fingerprint alone is the proof.
func bootstrap(ctx context.Context, base, fingerprint string) (*x509.Certificate, error) {
	u, err := url.JoinPath(base, "root", fingerprint)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	tr := newTransport(&tls.Config{InsecureSkipVerify: true})
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return nil, shorten(err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return nil, errors.New("it has no root with the configured fingerprint; set fingerprint to that of its root (openssl x509 -in root_ca.crt -noout -fingerprint -sha256)")
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("it answered the request for its root with %s", resp.Status)
	}
	return parseRoot(io.LimitReader(resp.Body, maxRoot), fingerprint)
}

func parseRoot(body io.Reader, fingerprint string) (*x509.Certificate, error) {
	var answer struct {
		CA string `json:"ca"`
	}
	if err := json.NewDecoder(body).Decode(&answer); err != nil {
		return nil, fmt.Errorf("it answered the request for its root unlike a step-ca: %w", err)
	}
	block, _ := pem.Decode([]byte(answer.CA))
	if block == nil {
		return nil, errors.New("it answered the request for its root without a certificate")
	}
	if sum := sha256.Sum256(block.Bytes); hex.EncodeToString(sum[:]) != fingerprint {
		return nil, fmt.Errorf("its root has the fingerprint %x, not the configured one: it is another CA, or somebody is in between", sum)
	}
	return x509.ParseCertificate(block.Bytes)
}

// sign requests a certificate for a new key with a token.
func (c *conn) sign(ctx context.Context, token string, names []string, life time.Duration) (*tls.Certificate, error) {
	key, csr, err := newRequest(names)
	if err != nil {
		return nil, err
	}
	req := &api.SignRequest{CsrPEM: api.NewCertificateRequest(csr), OTT: token}
	if life > 0 {
		req.NotAfter.SetDuration(life)
	}
	resp, err := c.client.SignWithContext(ctx, req)
	if err != nil {
		return nil, c.explain(err)
	}
	return pairOf(resp, key)
}

// rekey requests a certificate with the same names for a new key, over mutual TLS
// with the certificate in use.
func (c *conn) rekey(ctx context.Context, now *tls.Certificate) (*tls.Certificate, error) {
	key, csr, err := newRequest(namesOf(now.Leaf))
	if err != nil {
		return nil, err
	}
	tr := c.transport(now)
	defer tr.CloseIdleConnections()
	resp, err := c.client.RekeyWithContext(ctx, &api.RekeyRequest{CsrPEM: api.NewCertificateRequest(csr)}, tr)
	if err != nil {
		return nil, c.explain(err)
	}
	return pairOf(resp, key)
}

// renewExpired renews an expired certificate for the same key. No TLS server
// accepts the certificate any more, so the request has a token signed by the key.
func (c *conn) renewExpired(ctx context.Context, now *tls.Certificate) (*tls.Certificate, error) {
	token, err := renewToken(c.url, now)
	if err != nil {
		return nil, err
	}
	resp, err := c.client.RenewWithTokenAndContext(ctx, token)
	if err != nil {
		return nil, c.explain(err)
	}
	return pairOf(resp, now.PrivateKey.(crypto.Signer))
}

// fetchRoots returns the CA's roots and those of its federation.
func (c *conn) fetchRoots(ctx context.Context) ([]*x509.Certificate, error) {
	own, err := c.client.RootsWithContext(ctx)
	if err != nil {
		return nil, c.explain(err)
	}
	federated, err := c.client.FederationWithContext(ctx)
	if err != nil {
		return nil, c.explain(err)
	}
	var out []*x509.Certificate
	for _, r := range append(own.Certificates, federated.Certificates...) {
		if r.Certificate != nil && !slices.ContainsFunc(out, r.Equal) {
			out = append(out, r.Certificate)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("it answers without a root")
	}
	return out, nil
}

// newRequest makes a key and a certificate request for it.
func newRequest(names []string) (*ecdsa.PrivateKey, *x509.CertificateRequest, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := certs.NewRequest(names, key)
	return key, csr, err
}

// pairOf combines an answer and its key.
func pairOf(resp *api.SignResponse, key crypto.Signer) (*tls.Certificate, error) {
	chain := resp.CertChainPEM
	if len(chain) == 0 { // of a CA before 0.10
		chain = []api.Certificate{resp.ServerPEM, resp.CaPEM}
	}
	cert := &tls.Certificate{PrivateKey: key}
	for _, c := range chain {
		if c.Certificate != nil {
			cert.Certificate = append(cert.Certificate, c.Raw)
		}
	}
	if len(cert.Certificate) == 0 || chain[0].Certificate == nil {
		return nil, errors.New("it answers without a certificate")
	}
	cert.Leaf = chain[0].Certificate
	if !certs.BelongsTo(cert.Leaf, key) {
		return nil, errors.New("it answers with a certificate of another key")
	}
	return cert, nil
}

// refused reports whether the CA was reached and refused the request or our
// certificate: repeating the same request is useless.
func refused(err error) bool {
	var answer *errs.Error
	if errors.As(err, &answer) {
		status := answer.StatusCode()
		return status >= 400 && status < 500 && status != http.StatusTooManyRequests
	}
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" // a TLS alert
}

// explain adds how to fix the error.
func (c *conn) explain(err error) error {
	var unknown x509.UnknownAuthorityError
	var answer *errs.Error
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("no root that we know vouches for it; if it has a new root, set fingerprint to that of it: %w", shorten(err))
	case errors.As(err, &answer) && refused(err):
		return fmt.Errorf("%w (%d; its log has the reason: a token that was used, names or a lifetime that the provisioner does not allow, …)", err, answer.StatusCode())
	case errors.As(err, &answer):
		return fmt.Errorf("%w (%d)", err, answer.StatusCode())
	}
	return shorten(err)
}

// shorten removes the URL, which is reported already, and our own port, which
// differs each time: the log has each failure once.
func shorten(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return &net.OpError{Op: op.Op, Net: op.Net, Addr: op.Addr, Err: op.Err}
	}
	return err
}
