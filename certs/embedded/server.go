package embedded

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/smallstep/certificates/api"
	"github.com/smallstep/certificates/authority"
	"github.com/smallstep/certificates/authority/config"
	"github.com/smallstep/certificates/authority/provisioner"
	"github.com/smallstep/certificates/db"
	"github.com/smallstep/certificates/logging"
	"go.step.sm/crypto/jose"
)

// ServerOptions say how an authority is served.
type ServerOptions struct {
	// Names are the host names and addresses by which clients reach it.
	Names []string
	// Storage is a folder that keeps the authority. If empty, it is in memory.
	Storage string
	// Password decrypts the provisioner's key, and encrypts the keys in Storage.
	// It must not be empty unless PlainKeys is set.
	Password []byte
	// PlainKeys stores the intermediate's key without encryption.
	PlainKeys bool
	// ConnState, if not nil, is called with each change of a connection's state
	// (*tls.Conn).
	ConnState func(net.Conn, http.ConnState)
}

// ProvisionerName is the name of a Server's only provisioner, of type JWK.
const ProvisionerName = "ambassador"

// Server is an authority that speaks step-ca's protocol. Its owner calls Close.
type Server struct {
	*CA
	connState func(net.Conn, http.ConnState) // static after construction

	mu   sync.Mutex
	cert *tls.Certificate // guarded by mu; its own, in use
}

// storedLife is the lifetime of a Server's root and intermediate.
const storedLife = 10 * 365 * 24 * time.Hour

// longestLife bounds the lifetime of a Server's certificates.
const longestLife = 365 * 24 * time.Hour

// NewServer makes an authority with a provisioner, or opens the one in storage.
// Serve serves it.
func NewServer(o ServerOptions) (*Server, error) {
	made, key, err := openOrMake(o)
	if err != nil {
		return nil, fmt.Errorf("embedded CA: %w", err)
	}
	var database db.AuthDB
	if o.Storage != "" {
		if database, err = openDatabase(o.Storage); err != nil {
			return nil, fmt.Errorf("embedded CA: %w", err)
		}
	}
	jwk := &provisioner.JWK{Type: "JWK", Name: ProvisionerName, Key: key.Public, EncryptedKey: key.Encrypted}
	ca, err := startCA(made, &config.Config{Address: "127.0.0.1:0", DNSNames: o.Names, AuthorityConfig: &config.AuthConfig{
		Claims: newClaims(longestLife), Provisioners: provisioner.List{jwk}}}, database)
	if err != nil {
		return nil, err
	}
	return &Server{CA: ca, connState: o.ConnState}, nil
}

// provisionerKey is the CA's record of a provisioner.
type provisionerKey struct {
	Public    *jose.JSONWebKey `json:"key"`
	Encrypted string           `json:"encryptedKey"`
}

func newProvisionerKey(password []byte) (provisionerKey, error) {
	public, encrypted, err := jose.GenerateDefaultKeyPair(password)
	if err != nil {
		return provisionerKey{}, err
	}
	text, err := encrypted.CompactSerialize()
	return provisionerKey{public, text}, err
}

// Fingerprint returns the root's, in the form that step-ca clients expect.
func (c *CA) Fingerprint() string {
	sum := sha256.Sum256(c.pki.root.Raw)
	return hex.EncodeToString(sum[:])
}

const (
	// requestTimeout bounds a request: signing takes milliseconds.
	requestTimeout = 30 * time.Second
	// headerTimeout bounds the beginning of a request, and the TLS handshake.
	headerTimeout = 10 * time.Second
	// idleTimeout bounds the pause between two requests: clients connect once a day.
	idleTimeout = 30 * time.Second
	// closeTimeout bounds the wait for requests when Serve ends.
	closeTimeout = 2 * time.Second
	// maxStreams bounds the concurrent requests of one connection.
	maxStreams = 8
	// maxRequest bounds a request: a certificate request has a few KiB.
	maxRequest = 1 << 20
)

// Serve answers clients until ctx ends, and then closes ln and returns nil. It
// logs what was issued, and why a request was refused. Every wait for a client is
// bounded; ln bounds how many clients there are at a time.
func (s *Server) Serve(ctx context.Context, ln net.Listener, log *slog.Logger) error {
	pool := s.Roots()
	pool.AddCert(s.pki.intermediate)
	base := db.NewContext(authority.NewContext(context.WithoutCancel(ctx), s.authority), s.authority.GetDatabase())
	server := &http.Server{
		Handler:           http.MaxBytesHandler(logged(routes(), log), maxRequest),
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnState:         s.connState,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: 64 << 10, // a token with a chain in it
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		TLSConfig:      &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.certificate, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool},
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(ln, "", "") }() // received below
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if server.Shutdown(late) != nil {
		server.Close()
	}
	<-served
	return nil
}

// routes has step-ca's routes for X.509, at both prefixes that its clients use.
// It leaves out SSH, which api.Route includes, to keep the attack surface small.
func routes() chi.Router {
	r := chi.NewRouter()
	routeX509(r)
	r.Route("/1.0", routeX509)
	return r
}

func routeX509(r chi.Router) {
	r.Get("/health", api.Health)
	r.Get("/version", api.Version)
	r.Get("/root/{sha}", api.Root)
	r.Get("/roots", api.Roots)
	r.Get("/roots.pem", api.RootsPEM)
	r.Get("/federation", api.Federation)
	r.Get("/provisioners", api.Provisioners)
	r.Get("/provisioners/{kid}/encrypted-key", api.ProvisionerKey)
	r.Post("/sign", api.Sign)
	r.Post("/renew", api.Renew)
	r.Post("/rekey", api.Rekey)
	r.Post("/revoke", api.Revoke)
	r.Get("/crl", api.CRL)
}

// logged logs each request that changes something or is refused. The answer to a
// client does not say why.
func logged(h http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rw := logging.NewResponseLogger(w)
		h.ServeHTTP(rw, r)
		args := []any{"client", r.RemoteAddr, "path", r.URL.Path, "status", rw.StatusCode()}
		fields := rw.Fields()
		for _, key := range []string{"subject", "valid-to", "error"} {
			if v := fields[key]; v != nil {
				args = append(args, strings.ReplaceAll(key, "-", "_"), fmt.Sprint(v))
			}
		}
		if serial, ok := new(big.Int).SetString(fmt.Sprint(fields["serial"]), 10); ok {
			args = append(args, "serial", serial.Text(16)) // as everywhere else
		}
		switch {
		case rw.StatusCode() >= http.StatusBadRequest:
			log.Warn("refused", args...)
		case r.Method != http.MethodGet:
			log.Info("issued", args...)
		}
	})
}

// certificate returns the authority's own certificate, which is renewed at two
// thirds of its life.
func (s *Server) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cert != nil && time.Now().Before(renewal(s.cert.Leaf)) {
		return s.cert, nil
	}
	cert, err := s.authority.GetTLSCertificate()
	if err == nil {
		s.cert = cert
	}
	return s.cert, err
}

func renewal(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)
}
