package ending

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"

	"ambassador/l4/outcome"
	"ambassador/l4/preface"
)

// ForClient returns the part of a failure that the client may read: the reason, the
// text of rules and limits, the upstream's name, and what happened at a destination
// that the client may reach. It leaves out addresses of a name that the client may not
// reach, addresses that another client's session has tried, and the address of our name
// server, and what the source of discovered addresses says. The record and the log have all of them.
func ForClient(e *outcome.Error) *outcome.Error {
	public := *e
	var (
		refused *outcome.Refusal
		source  *outcome.DiscoveryError
		dns     *net.DNSError
	)
	switch {
	case errors.As(e.Err, &refused) && refused.Public != "":
		public.Err = errors.New(refused.Public)
	case errors.As(e.Err, &source):
		public.Err = errors.New("discovery failed")
	case errors.As(e.Err, &dns):
		public.Err = publicLookup(dns)
	default:
		return e
	}
	return &public
}

// publicLookup returns a failed lookup without the addresses of the name server and of
// this host, which the text of net.DNSError includes.
func publicLookup(e *net.DNSError) error {
	switch {
	case e.IsNotFound:
		return fmt.Errorf("lookup %s: no such host", e.Name)
	case e.IsTimeout:
		return fmt.Errorf("lookup %s: no answer in time", e.Name)
	}
	return fmt.Errorf("lookup %s: the name server failed", e.Name)
}

// SOCKSReply maps a failure to a SOCKS5 reply: the general failure if its reason has no
// reply of its own.
func SOCKSReply(e *outcome.Error) preface.SOCKSReply {
	switch e.Reason {
	case outcome.Denied, outcome.NoRoute, outcome.SpecialAddress, outcome.Loop:
		return preface.SOCKSNotAllowed
	case outcome.Unreachable:
		if errors.Is(e, syscall.ENETUNREACH) {
			return preface.SOCKSNetworkUnreachable
		}
		return preface.SOCKSHostUnreachable
	case outcome.DNS:
		return preface.SOCKSHostUnreachable
	case outcome.Refused, outcome.BreakerOpen, outcome.NoEndpoint:
		return preface.SOCKSRefused
	case outcome.Timeout:
		return preface.SOCKSExpired
	}
	return preface.SOCKSFailed
}

// connectReplies maps a reason to its status and its error type in RFC 9209, section
// 2.3. A reason that is not in the map is our own fault.
var connectReplies = map[outcome.Reason]struct {
	status int
	kind   string
}{
	outcome.BadGreeting:         {http.StatusBadRequest, "http_request_error"},
	outcome.HandshakeTimeout:    {http.StatusRequestTimeout, "http_request_error"},
	outcome.AuthFailed:          {http.StatusProxyAuthRequired, "http_request_denied"},
	outcome.Denied:              {http.StatusForbidden, "http_request_denied"},
	outcome.NoRoute:             {http.StatusForbidden, "http_request_denied"},
	outcome.SpecialAddress:      {http.StatusForbidden, "destination_ip_prohibited"},
	outcome.Loop:                {http.StatusForbidden, "proxy_loop_detected"},
	outcome.DNS:                 {http.StatusBadGateway, "dns_error"},
	outcome.Refused:             {http.StatusBadGateway, "connection_refused"},
	outcome.Unreachable:         {http.StatusBadGateway, "destination_ip_unroutable"},
	outcome.StartTLSRefused:     {http.StatusBadGateway, "tls_protocol_error"},
	outcome.UpstreamTLS:         {http.StatusBadGateway, "tls_certificate_error"},
	outcome.UpstreamTLSRejected: {http.StatusBadGateway, "tls_alert_received"},
	outcome.UpstreamEarlyClose:  {http.StatusBadGateway, "connection_terminated"},
	outcome.UpstreamReset:       {http.StatusBadGateway, "connection_terminated"},
	outcome.Timeout:             {http.StatusGatewayTimeout, "connection_timeout"},
	outcome.BreakerOpen:         {http.StatusServiceUnavailable, "destination_unavailable"},
	outcome.NoEndpoint:          {http.StatusServiceUnavailable, "destination_unavailable"},
	outcome.Limit:               {http.StatusServiceUnavailable, "connection_limit_reached"},
	outcome.LocalExhausted:      {http.StatusServiceUnavailable, "proxy_internal_error"},
	outcome.NoIdentity:          {http.StatusServiceUnavailable, "proxy_internal_error"},
}

// ConnectReply returns the status and the error type for a failure.
func ConnectReply(e *outcome.Error) (status int, kind string) {
	var (
		method      *preface.MethodError
		certificate *tls.CertificateVerificationError
	)
	reply, ok := connectReplies[e.Reason]
	switch {
	case !ok:
		return http.StatusInternalServerError, "proxy_internal_error"
	case errors.As(e, &method):
		return http.StatusMethodNotAllowed, reply.kind
	case e.Reason == outcome.UpstreamTLS && !errors.As(e, &certificate):
		return reply.status, "tls_protocol_error"
	}
	return reply.status, reply.kind
}
