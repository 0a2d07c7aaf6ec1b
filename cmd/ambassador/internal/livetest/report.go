package livetest

import (
	"fmt"
	"io"
	"strings"
	"time"

	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/outcome"
)

// Report is the result of a test.
type Report struct {
	OK           bool          `json:"ok"`
	Upstreams    []Upstream    `json:"upstreams"`
	Destinations []Destination `json:"destinations,omitempty"`
}

// Result is a part of the report.
type Result interface {
	// Write prints it for people, one line a stage.
	Write(io.Writer) error
}

// Upstream is the result of one upstream. Skipped says why it was not tried.
type Upstream struct {
	Name      string    `json:"name"`
	OK        bool      `json:"ok"`
	Skipped   string    `json:"skipped,omitempty"`
	Addresses []Address `json:"addresses"`
}

// Destination is the result of what a client asks of a listener. OK says that the client
// reaches it, by one of the addresses. Stages are those before an address is chosen.
type Destination struct {
	Destination string    `json:"destination"`
	Listener    string    `json:"listener"`
	OK          bool      `json:"ok"`
	Upstream    string    `json:"upstream,omitempty"` // that the rules choose
	Stages      []Stage   `json:"stages"`
	Addresses   []Address `json:"addresses"`
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
	Rule        = "rule"    // of the listener
	Special     = "special" // all addresses are special ones, or our own
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
	writeAddresses(&r, u.Name, u.Addresses)
	_, err := io.WriteString(w, r.String())
	return err
}

// Write prints one destination for people, one line a stage.
func (d *Destination) Write(w io.Writer) error {
	var r output.Report
	r.Linef("%s → %s", d.Listener, d.Destination)
	writeStages(&r, d.Stages)
	writeAddresses(&r, d.Upstream, d.Addresses)
	if n := failures(d.Addresses); d.OK && n > 0 {
		r.Linef("%s → %s: a client reaches it, by another address than the %d that failed", d.Listener, d.Destination, n)
	}
	_, err := io.WriteString(w, r.String())
	return err
}

func writeAddresses(r *output.Report, upstream string, all []Address) {
	for _, a := range all {
		to := a.Endpoint
		if a.Address != "" && a.Address != a.Endpoint {
			to += " (" + a.Address + ")"
		}
		r.Linef("%s → %s", upstream, to)
		writeStages(r, a.Stages)
	}
}

func writeStages(r *output.Report, all []Stage) {
	for _, s := range all {
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

func failures(all []Address) (n int) {
	for _, a := range all {
		if !a.OK {
			n++
		}
	}
	return n
}

// Summary is one line about the whole test.
func (r *Report) Summary() string {
	tried, failed, unreached := 0, 0, 0
	for _, u := range r.Upstreams {
		tried += len(u.Addresses)
		failed += failures(u.Addresses)
	}
	for _, d := range r.Destinations {
		if !d.OK {
			unreached++
		}
	}
	var all, bad []string
	if tried > 0 || len(r.Destinations) == 0 {
		all = append(all, addresses(tried))
	}
	if failed > 0 {
		bad = append(bad, fmt.Sprintf("%d of %s", failed, addresses(tried)))
	}
	if n := len(r.Destinations); n > 0 {
		all = append(all, output.Plural(n, "destination"))
		if unreached > 0 {
			bad = append(bad, fmt.Sprintf("%d of %s", unreached, output.Plural(n, "destination")))
		}
	}
	if len(bad) == 0 {
		return fmt.Sprintf("ok (%s)", strings.Join(all, ", "))
	}
	return fmt.Sprintf("failed (%s)", strings.Join(bad, ", "))
}

func addresses(n int) string {
	if n == 1 {
		return "1 address"
	}
	return fmt.Sprintf("%d addresses", n)
}
