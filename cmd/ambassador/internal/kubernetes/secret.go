package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"ambassador/certs"
	"ambassador/certs/files"
)

// The keys of a Secret, as cert-manager and `kubectl create secret tls` name them.
const (
	keyCert = "tls.crt"
	keyKey  = "tls.key"
	keyCA   = "ca.crt"
	keyCRL  = "ca.crl"
)

// secret is what is read of a Secret.
type secret struct {
	Metadata metadata
	Data     map[string][]byte
}

func (s *secret) meta() *metadata { return &s.Metadata }

// SecretIdentity keeps a source current with a Secret. Make it with Client.Identity.
type SecretIdentity struct {
	// Static after construction.
	client   *Client
	ref      Secret
	source   *certs.Source
	contents *files.Contents
}

// Identity makes the issuer of an identity from a Secret. It asks nothing before Run.
func (c *Client) Identity(ref Secret, source *certs.Source, log *slog.Logger) *SecretIdentity {
	return &SecretIdentity{client: c, ref: ref, source: source, contents: files.NewContents(source, log)}
}

// Run follows the Secret until ctx ends. It leaves no goroutine behind, and is called
// once.
func (s *SecretIdentity) Run(ctx context.Context) {
	f := &feed[*secret]{client: s.client, only: s.ref.Name,
		needs: needs{namespace: s.ref.Namespace, name: s.ref.Name, what: "secret " + s.ref.String(), resources: []string{"secrets"}, role: "ambassador-secret-" + s.ref.Name},
		guard: func(try func() error) error { return s.source.Guard(certs.PartIssuer, try) },
		path:  "/api/v1/namespaces/" + s.ref.Namespace + "/secrets",
		query: url.Values{"fieldSelector": {"metadata.name=" + s.ref.Name}},
		changed: func(all map[string]*secret) {
			s.take(all[s.ref.Name])
		},
		failed: func(err error) { s.contents.Fail(s.prefixed(err)) }}
	f.run(ctx)
}

func (s *SecretIdentity) prefixed(err error) error { return fmt.Errorf("secret %s: %w", s.ref, err) }

// take publishes what the Secret has. Nil: it does not exist.
func (s *SecretIdentity) take(is *secret) {
	if is == nil {
		s.contents.Fail(s.prefixed(errors.New("it does not exist; create it, or correct the name in the identity's kubernetes")))
		return
	}
	name := func(key string) string { return "secret " + s.ref.String() + ": " + key }
	read := map[string][]byte{}
	for key, text := range is.Data {
		read[name(key)] = text
	}
	has := func(key string) string {
		if len(is.Data[key]) == 0 {
			return ""
		}
		return name(key)
	}
	f := files.Files{Cert: has(keyCert), Key: has(keyKey), CA: has(keyCA), CRL: has(keyCRL)}
	if f.Cert != "" || f.Key != "" || f.CA == "" {
		f.Cert, f.Key = name(keyCert), name(keyKey)
	}
	s.contents.Take(f, func(path string) ([]byte, error) {
		if len(read[path]) == 0 {
			return nil, fmt.Errorf("there is no such key, or it is empty; put %s and %s there, as cert-manager does, and %s with the roots, if there are any", keyCert, keyKey, keyCA)
		}
		return read[path], nil
	}, time.Now())
}
