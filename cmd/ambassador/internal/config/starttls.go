package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"ambassador/l4/starttls"
)

// StartTLSSection is an upstream's starttls_options.
type StartTLSSection struct {
	Direct   bool
	EHLOName string
	Timeout  time.Duration
}

// startTLSField is an upstream's starttls.
func startTLSField(to *string) field {
	names := append([]string{"none"}, starttls.Names()...)
	f := textField("starttls", "The protocol that goes over to TLS after a dialogue of its own.", to, func(s string) error {
		if why := starttls.Unsupported(s); why != "" {
			return errors.New(why)
		}
		if !slices.Contains(names, s) {
			return fmt.Errorf("%q is none of %s", s, strings.Join(names, ", "))
		}
		return nil
	})
	f.schema = schemaWith("enum", names)
	return f.or("none")
}

func (s *StartTLSSection) fields() []field {
	return []field{
		boolField("direct", "Begins TLS at once, without the request of the protocol. With postgres: PostgreSQL 17 and newer accept it (sslnegotiation=direct of libpq); the ALPN name postgresql is offered. With nats: a server with handshake_first.", &s.Direct).or(false),
		textField("ehlo_name", "With smtp or lmtp, the name of this host in our EHLO or LHLO before TLS: a host name, or an IP address in brackets. The client says its own after it. Default: [127.0.0.1].", &s.EHLOName, nil),
		durationField("timeout", "How long the server may take between the dial and TLS, from the PROXY header on; connect.attempt_timeout then bounds only what is before and after it. RFC 5321 lets mail servers take 5 minutes to greet. 0s: it is a part of the attempt.", &s.Timeout, 0).or(0 * time.Second),
	}
}

func (s *StartTLSSection) options() starttls.Options {
	return starttls.Options{Direct: s.Direct, EHLOName: s.EHLOName}
}

// validateStartTLS finds what no key of starttls_options by itself shows.
func (u *UpstreamSection) validateStartTLS(d *decoder, path string) {
	at, s := path+".starttls_options", &u.StartTLSOptions
	_, known := starttls.Lookup(u.StartTLS)
	switch {
	case !known && *s == StartTLSSection{}:
		return
	case !known:
		d.failAt(at, "there is no starttls that these are for; set starttls, or remove them")
		return
	case s.Timeout > u.Connect.Timeout:
		d.failAt(at+".timeout", "%s is longer than connect.timeout (%s), which bounds all attempts; make one shorter or the other longer", s.Timeout, u.Connect.Timeout)
	}
	if _, err := starttls.New(u.StartTLS, s.options()); err != nil {
		d.failAt(at, "%v", err)
	}
	if alpn := u.alpn(); u.StartTLS == "postgres" && s.Direct && !slices.Contains(alpn, starttls.PostgresALPN) {
		d.failAt(path+".tls.alpn", "%q is missing, without which a PostgreSQL server ends a direct connection; add it, or remove alpn", starttls.PostgresALPN)
	}
}

// alpn returns the protocols to offer in the TLS handshake.
func (u *UpstreamSection) alpn() []string {
	switch {
	case u.TLS == nil:
		return nil
	case u.StartTLS == "postgres" && u.StartTLSOptions.Direct && u.TLS.ALPN == nil:
		return []string{starttls.PostgresALPN}
	}
	return u.TLS.ALPN
}
