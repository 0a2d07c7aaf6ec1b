package livetest

import (
	"fmt"
	"io"
	"time"

	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/outcome"
)

// Report is the result of a test.
type Report struct {
	OK        bool       `json:"ok"`
	Upstreams []Upstream `json:"upstreams"`
}

// Upstream is the result of one upstream. Skipped says why it was not tried.
type Upstream struct {
	Name      string    `json:"name"`
	OK        bool      `json:"ok"`
	Skipped   string    `json:"skipped,omitempty"`
	Addresses []Address `json:"addresses"`
}

// Address is the result of one address; of an endpoint whose lookup failed, if Address
// is empty.
type Address struct {
	Endpoint string  `json:"endpoint"`
	Address  string  `json:"address,omitempty"`
	OK       bool    `json:"ok"`
	Stages   []Stage `json:"stages"`
}

// The names of stages, in their order.
const (
	Resolve     = "resolve"
	Connect     = "connect"
	Proxy       = "proxy"
	StartTLS    = "starttls"
	TLS         = "tls"         // the handshake, if it failed without a word about a certificate
	Certificate = "certificate" // of the server
	Identity    = "identity"    // our certificate
	Answer      = "answer"
	Check       = "http" // health.http
)

// Stage is how one stage went. Detail is what was seen, or the cause of the failure.
type Stage struct {
	Name   string         `json:"stage"`
	OK     bool           `json:"ok"`
	Detail string         `json:"detail,omitempty"`
	Reason outcome.Reason `json:"reason,omitempty"`
	Hint   string         `json:"hint,omitempty"`
	// Server is its certificate, with the stage certificate.
	Server *ServerCertificate `json:"server,omitempty"`
}

// ServerCertificate describes the certificate of a server.
type ServerCertificate struct {
	Subject  string    `json:"subject"`
	Names    []string  `json:"names"`
	Issuer   string    `json:"issuer"`
	NotAfter time.Time `json:"not_after"`
	DaysLeft int       `json:"days_left"`
	// Root is the subject of the root that it verified with, and Roots says where that is
	// from. Both are empty if it did not verify.
	Root  string `json:"root,omitempty"`
	Roots string `json:"roots,omitempty"`
}

// Write prints one upstream for people, one line a stage.
func (u *Upstream) Write(w io.Writer) error {
	var r output.Report
	if u.Skipped != "" {
		r.Linef("%s: skipped: %s", u.Name, u.Skipped)
	}
	for _, a := range u.Addresses {
		to := a.Endpoint
		if a.Address != "" && a.Address != a.Endpoint {
			to += " (" + a.Address + ")"
		}
		r.Linef("%s → %s", u.Name, to)
		for _, s := range a.Stages {
			mark := "ok  "
			if !s.OK {
				mark = "FAIL"
			}
			r.Linef("  %s %-11s  %s", mark, s.Name, s.Detail)
			if s.Hint != "" {
				r.Linef("  %4s %-11s  fix: %s", "", "", s.Hint)
			}
		}
	}
	_, err := io.WriteString(w, r.String())
	return err
}

// Summary is one line about the whole test.
func (r *Report) Summary() string {
	tried, failed := 0, 0
	for _, u := range r.Upstreams {
		for _, a := range u.Addresses {
			tried++
			if !a.OK {
				failed++
			}
		}
	}
	if failed == 0 {
		return fmt.Sprintf("ok (%s)", addresses(tried))
	}
	return fmt.Sprintf("failed (%d of %s)", failed, addresses(tried))
}

func addresses(n int) string {
	if n == 1 {
		return "1 address"
	}
	return fmt.Sprintf("%d addresses", n)
}
