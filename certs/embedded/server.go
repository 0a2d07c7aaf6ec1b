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

// ServerOptions are how an authority is served.
type ServerOptions struct {
	// Names are the host names and addresses that clients reach it by.
	Names []string
	// Storage is a folder that keeps the authority. If empty, it is in memory.
	Storage string
	// Password opens the provisioner's key, and encrypts the keys in Storage. It is
	// not empty, but for keys that are stored as they are: then PlainKeys is set.
	Password []byte
	// PlainKeys stores the intermediate's key without encryption.
	PlainKeys bool
	// ConnState is told of the state of each connection (*tls.Conn). If nil, nobody is.
	ConnState func(net.Conn, http.ConnState)
}

// ProvisionerName is that of the one provisioner of a Server, of type JWK.
const ProvisionerName = "ambassador"

// Server is an authority that speaks step-ca's protocol. Its owner calls Close.
type Server struct {
	*CA
	connState func(net.Conn, http.ConnState) // static after construction

	mu   sync.Mutex
	cert *tls.Certificate // guarded by mu; its own, in use
}

// storedLife is that of root and intermediate.
const storedLife = 10 * 365 * 24 * time.Hour

// longestLife bounds the certificates of a Server.
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

// provisionerKey is what the CA keeps of a provisioner.
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

// Fingerprint is the root's, as step-ca clients want it.
func (c *CA) Fingerprint() string {
	sum := sha256.Sum256(c.pki.root.Raw)
	return hex.EncodeToString(sum[:])
}

const (
	// requestTimeout bounds a request: signing takes milliseconds.
	requestTimeout = 30 * time.Second
	// headerTimeout bounds the beginning of a request, and the TLS handshake.
	headerTimeout = 10 * time.Second
	// idleTimeout bounds the pause between two requests: clients come once a day.
	idleTimeout = 30 * time.Second
	// closeTimeout bounds the wait for requests when Serve ends.
	closeTimeout = 2 * time.Second
	// maxStreams bounds the requests of one connection at a time.
	maxStreams = 8
	// maxRequest bounds a request: one for a certificate has a few KiB.
	maxRequest = 1 << 20
)

// Serve answers clients until ctx ends, and closes ln. The error is nil then. The
// log has what was issued, and why what was asked was refused. Every wait for a
// client is bounded; ln bounds how many there are at a time.
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

// routes are those of step-ca that concern X.509, at both places where its clients
// look. SSH, which api.Route has, too, is not for us: what is not there cannot be
// attacked.
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

// logged writes a line for each request that changes something or is refused. The
// answer to a client does not say why.
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

// certificate is the authority's own, which it renews at two thirds of its life.
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
