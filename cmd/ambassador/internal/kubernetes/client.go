package kubernetes

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"sync"
	"time"

	"ambassador/certs"
	"ambassador/policy"
)

// The environment of a Client.
const (
	envHost        = "KUBERNETES_SERVICE_HOST"
	envPort        = "KUBERNETES_SERVICE_PORT"
	envCredentials = "AMBASSADOR_KUBERNETES_CREDENTIALS" // the folder of token and ca.crt
	envZone        = "AMBASSADOR_ZONE"
	envNode        = "AMBASSADOR_NODE"
)

// defaultCredentials is where the kubelet mounts the service account of a pod.
const defaultCredentials = "/var/run/secrets/kubernetes.io/serviceaccount"

// Bounds of one request.
const (
	dialTimeout   = 10 * time.Second
	headerTimeout = 15 * time.Second // the API server begins to answer a watch at once
	listTimeout   = 30 * time.Second
	pingAfter     = 15 * time.Second // of silence; finds a server that is gone without a word
	pingTimeout   = 10 * time.Second
	idleTimeout   = 90 * time.Second
	maxHeader     = 64 << 10
	maxCA         = 1 << 20
)

// Client asks one API server. It is safe for concurrent use. Make it with New.
type Client struct {
	// Static after construction.
	env      func(string) (string, bool)
	log      *slog.Logger
	panicked func(part string)
	backoff  policy.Backoff // the pauses of a feed after failures

	mu        sync.Mutex
	transport *http.Transport // guarded by mu; nil before the first request
	ca        []byte          // guarded by mu; the text of the roots of transport
}

// New makes a client that reads its environment and its files when they are needed.
// Panicked, if it is not nil, is called for each recovered panic of discovery.
func New(env func(string) (string, bool), log *slog.Logger, panicked func(part string)) *Client {
	return &Client{env: env, log: log, panicked: panicked, backoff: policy.Backoff{Base: firstPause, Max: longestPause}}
}

// Address is the API server as "HOST:PORT"; empty if the environment does not say it.
func (c *Client) Address() string {
	host, _ := c.env(envHost)
	port, _ := c.env(envPort)
	if host == "" {
		return ""
	}
	return net.JoinHostPort(host, cmp.Or(port, "443"))
}

// Files are the paths of token and roots.
func (c *Client) Files() (token, ca string) {
	folder, _ := c.env(envCredentials)
	folder = cmp.Or(folder, defaultCredentials)
	return filepath.Join(folder, "token"), filepath.Join(folder, "ca.crt")
}

var errOutside = fmt.Errorf("%s is not set, so that this is not in a pod; set it, %s, and %s to a folder with token and ca.crt", envHost, envPort, envCredentials)

// unaskedError says why the API server has not answered.
type unaskedError struct{ error }

func (e *unaskedError) Unwrap() error { return e.error }

// get sends a GET request. The caller closes the body of the response, whose status is
// 200. The error is a *statusError if the server has answered, else an *unaskedError.
func (c *Client) get(ctx context.Context, path string, query url.Values) (*http.Response, error) {
	response, err := c.send(ctx, path, query)
	if err != nil {
		return nil, &unaskedError{err}
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		return nil, newStatusError(response)
	}
	return response, nil
}

// send sends a GET request with our token.
func (c *Client) send(ctx context.Context, path string, query url.Values) (*http.Response, error) {
	at := c.Address()
	if at == "" {
		return nil, errOutside
	}
	tokenPath, caPath := c.Files()
	token, err := certs.ReadSecret(tokenPath)
	if err != nil {
		return nil, fileError(err)
	}
	transport, err := c.transportFor(caPath)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+at+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+string(token))
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "ambassador")
	response, err := transport.RoundTrip(request) // not a Client, which follows redirects with the token
	if err != nil {
		return nil, fmt.Errorf("the API server at %s cannot be asked: %w", at, err)
	}
	return response, nil
}

// fileError adds the fix to an error of a file of the service account.
func fileError(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w; is automountServiceAccountToken false? outside of a pod, %s names the folder of token and ca.crt", err, envCredentials)
	}
	return err
}

// transportFor returns the transport for the roots that the file has now.
func (c *Client) transportFor(caPath string) (*http.Transport, error) {
	ca, err := certs.ReadGuarded(caPath, maxCA)
	if err != nil {
		return nil, fileError(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.transport != nil && bytes.Equal(ca, c.ca) {
		return c.transport, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s: there is no certificate in it; put the roots of the API server there, in PEM", caPath)
	}
	if c.transport != nil {
		c.transport.CloseIdleConnections() // the others end with their watches
	}
	c.transport, c.ca = newTransport(roots), ca
	return c.transport, nil
}

// newTransport makes a transport that trusts these roots. It uses no proxy: the address
// is one of the cluster.
func newTransport(roots *x509.CertPool) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout}
	dialer.SetMultipathTCP(false)
	return &http.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    dialTimeout,
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		ResponseHeaderTimeout:  headerTimeout,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
	}
}
