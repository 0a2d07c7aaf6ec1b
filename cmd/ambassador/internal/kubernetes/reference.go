package kubernetes

import (
	"fmt"
	"strconv"
	"strings"
)

// Service names a port of a Service.
type Service struct {
	Namespace, Name string
	// Port is the name of a port of the Service, or its number there (spec.ports[].port),
	// which need not be that of the pods.
	Port string
}

// String is the reference as it is written in a configuration.
func (s Service) String() string { return s.Namespace + "/" + s.Name + ":" + s.Port }

// Host is the name of the Service in the cluster's DNS, without the cluster's domain.
func (s Service) Host() string { return s.Name + "." + s.Namespace + ".svc" }

// Secret names a Secret.
type Secret struct{ Namespace, Name string }

// String is the reference as it is written in a configuration.
func (s Secret) String() string { return s.Namespace + "/" + s.Name }

// ParseService reads "namespace/service:port".
func ParseService(text string) (s Service, err error) {
	fail := func(format string, args ...any) (Service, error) {
		return Service{}, fmt.Errorf("%q is no port of a Kubernetes Service: %s; write namespace/service:port, like default/db:5432", text, fmt.Sprintf(format, args...))
	}
	namespace, rest, ok := strings.Cut(text, "/")
	if !ok {
		return fail("the namespace is missing")
	}
	name, port, ok := strings.Cut(rest, ":")
	switch {
	case !ok:
		return fail("the port is missing")
	case !isLabel(namespace):
		return fail("%q is no name of a namespace", namespace)
	case !isLabel(name):
		return fail("%q is no name of a Service, which is one DNS label", name)
	case !isPort(port):
		return fail("%q is no port: a number from 1 to 65535, or the name of a port of the Service", port)
	}
	return Service{namespace, name, port}, nil
}

// ParseSecret reads "namespace/secret".
func ParseSecret(text string) (s Secret, err error) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || !isLabel(namespace) || !isSubdomain(name) {
		return Secret{}, fmt.Errorf("%q is no Kubernetes Secret; write namespace/secret, like default/client-tls", text)
	}
	return Secret{namespace, name}, nil
}

// CheckSecret is ParseSecret for the check of a key.
func CheckSecret(text string) error {
	_, err := ParseSecret(text)
	return err
}

// CheckService is ParseService for the check of a key.
func CheckService(text string) error {
	_, err := ParseService(text)
	return err
}

// isLabel reports whether s is a DNS label in lower case (RFC 1123).
func isLabel(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
}

// isSubdomain reports whether s is a DNS name in lower case (RFC 1123).
func isSubdomain(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return len(s) <= 253
}

func isPort(s string) bool {
	if n, isNumber := portNumber(s); isNumber {
		return n != 0
	}
	return isLabel(s) && strings.ContainsFunc(s, func(r rune) bool { return r >= 'a' && r <= 'z' })
}

// portNumber returns the number of a port that is given by number.
func portNumber(s string) (n uint16, ok bool) {
	parsed, err := strconv.ParseUint(s, 10, 16)
	return uint16(parsed), err == nil
}
