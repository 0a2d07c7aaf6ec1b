package step

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/smallstep/certificates/authority/provisioner"
	"github.com/smallstep/certificates/ca"
	"go.step.sm/crypto/jose"
	"go.step.sm/crypto/randutil"

	"ambassador/certs"
)

// tokenLife is that of step's own tokens. A token is valid from a minute ago on,
// because clocks differ.
const (
	tokenLife     = 5 * time.Minute
	tokenBackdate = time.Minute
)

// claims are the claims of a token for the CA.
type claims struct {
	jose.Claims
	SANs []string `json:"sans,omitempty"`
	SHA  string   `json:"sha,omitempty"`
}

// newClaims makes claims for one use at a path of the CA.
func newClaims(base, path, issuer, subject string) (claims, error) {
	audience, err := url.JoinPath(base, path)
	if err != nil {
		return claims{}, err
	}
	id, err := randutil.Hex(64)
	if err != nil {
		return claims{}, err
	}
	now := time.Now()
	return claims{Claims: jose.Claims{ID: id, Issuer: issuer, Subject: subject, Audience: jose.Audience{audience},
		IssuedAt: jose.NewNumericDate(now), NotBefore: jose.NewNumericDate(now.Add(-tokenBackdate)), Expiry: jose.NewNumericDate(now.Add(tokenLife))}}, nil
}

// makeToken signs a token with the provisioner's key, which the CA serves
// encrypted.
func (i *Issuer) makeToken(ctx context.Context, conn *conn) (string, error) {
	password, err := certs.ReadSecret(i.cfg.PasswordFile)
	if err != nil {
		return "", err
	}
	p, err := conn.provisioner(ctx, i.cfg.Provisioner)
	if err != nil {
		return "", err
	}
	key, err := openKey(p.EncryptedKey, password)
	if err != nil {
		return "", fmt.Errorf("the password in %s does not open the key of provisioner %q", i.cfg.PasswordFile, p.Name)
	}
	c, err := newClaims(i.cfg.URL, "1.0/sign", p.Name, i.cfg.Names[0])
	if err != nil {
		return "", err
	}
	c.SANs, c.SHA = i.cfg.Names, i.cfg.Fingerprint
	options := (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", p.Key.KeyID)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(key.Algorithm), Key: key.Key}, options)
	if err != nil {
		return "", err
	}
	return jose.Signed(signer).Claims(c).CompactSerialize()
}

func openKey(encrypted string, password []byte) (*jose.JSONWebKey, error) {
	e, err := jose.ParseEncrypted(encrypted)
	if err != nil {
		return nil, err
	}
	plain, err := e.Decrypt(password)
	if err != nil {
		return nil, err
	}
	key := new(jose.JSONWebKey)
	return key, json.Unmarshal(plain, key)
}

// maxPages bounds how many pages of provisioners are read, with 100 each.
const maxPages = 100

// provisioner finds a JWK provisioner by name.
func (c *conn) provisioner(ctx context.Context, name string) (*provisioner.JWK, error) {
	var others []string
	cursor := ""
	for range maxPages {
		page, err := c.client.ProvisionersWithContext(ctx, ca.WithProvisionerCursor(cursor), ca.WithProvisionerLimit(100))
		if err != nil {
			return nil, c.explain(err)
		}
		for _, p := range page.Provisioners {
			jwk, ok := p.(*provisioner.JWK)
			switch {
			case ok && jwk.Name == name && jwk.EncryptedKey != "":
				return jwk, nil
			case ok:
				others = append(others, jwk.Name)
			case p.GetName() == name:
				return nil, fmt.Errorf("provisioner %q is of type %v; use one of type JWK, or a token_file", name, p.GetType())
			}
		}
		if cursor = page.NextCursor; cursor == "" {
			break
		}
	}
	return nil, fmt.Errorf("it has no JWK provisioner %q that keeps its key at the CA; there is %s", name, orNone(others))
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// renewToken makes a token that contains the certificate and is signed by its
// key, which is one of newRequest.
func renewToken(base string, cert *tls.Certificate) (string, error) {
	var chain []string
	for _, der := range cert.Certificate {
		chain = append(chain, base64.StdEncoding.EncodeToString(der))
	}
	c, err := newClaims(base, "1.0/renew", "step-ca-client/1.0", cert.Leaf.Subject.CommonName)
	if err != nil {
		return "", err
	}
	options := (&jose.SignerOptions{}).WithType("JWT").WithHeader("x5cInsecure", chain)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: cert.PrivateKey}, options)
	if err != nil {
		return "", err
	}
	return jose.Signed(signer).Claims(c).CompactSerialize()
}

// readToken reads the token file. It does not return a token that the CA would
// refuse: the error says what is needed.
func (i *Issuer) readToken() (string, error) {
	b, err := certs.ReadSecret(i.cfg.TokenFile)
	if err != nil {
		return "", fmt.Errorf("a one-time token is needed: %w", err)
	}
	token := string(b)
	i.mu.Lock()
	spent, answer := token == i.spent, i.answer
	i.mu.Unlock()
	switch {
	case spent && answer != nil:
		return "", fmt.Errorf("the one-time token in %s was refused, put a new one there: %w", i.cfg.TokenFile, answer)
	case spent:
		return "", fmt.Errorf("the one-time token in %s is used up; put a new one there", i.cfg.TokenFile)
	}
	if err := checkToken(token, i.cfg.Names, time.Now()); err != nil {
		return "", fmt.Errorf("the one-time token in %s %w", i.cfg.TokenFile, err)
	}
	return token, nil
}

// checkToken checks what a token is for. Only the CA can check its signature.
func checkToken(token string, names []string, now time.Time) error {
	var c claims
	parsed, err := jose.ParseSigned(token)
	if err == nil {
		err = parsed.UnsafeClaimsWithoutVerification(&c)
	}
	if err != nil {
		return errors.New("is none; make one with: step ca token NAME")
	}
	if c.Expiry != nil && now.After(c.Expiry.Time()) {
		return fmt.Errorf("expired at %s; put a new one there", c.Expiry.Time().UTC().Format(time.RFC3339))
	}
	sans := c.SANs
	if len(sans) == 0 {
		sans = []string{c.Subject}
	}
	sans, want := slices.Sorted(slices.Values(sans)), slices.Sorted(slices.Values(names))
	if !slices.Equal(sans, want) {
		return fmt.Errorf("is for %s, but names has %s; make both the same (step ca token NAME --san NAME …)", strings.Join(sans, ", "), strings.Join(want, ", "))
	}
	return nil
}
