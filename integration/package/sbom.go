package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
)

// bom is a bill of materials, CycloneDX 1.6.
type bom struct {
	Schema       string       `json:"$schema"`
	Format       string       `json:"bomFormat"`
	SpecVersion  string       `json:"specVersion"`
	SerialNumber string       `json:"serialNumber"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Timestamp string    `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Ref     string `json:"bom-ref"`
	Type    string `json:"type"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Scope   string `json:"scope,omitempty"`
	Hashes  []hash `json:"hashes,omitempty"`
	PURL    string `json:"purl"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn,omitempty"`
}

// newBOM lists the modules of a binary. Its serial number is made of the binary.
func newBOM(r release, t target, binary []byte, modules []*module) ([]byte, error) {
	sum := sha256.Sum256(binary)
	b := bom{Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json", Format: "CycloneDX", SpecVersion: "1.6", SerialNumber: serial(sum), Version: 1,
		Components: []component{}}
	b.Metadata.Timestamp = r.date.Format(time.RFC3339)
	refs := map[string]string{}
	for _, m := range modules {
		c, err := componentOf(m)
		if err != nil {
			return nil, err
		}
		if m.Main {
			c = application(r, t, m, sum)
			b.Metadata.Component = c
		} else {
			b.Components = append(b.Components, c)
		}
		refs[m.Path] = c.Ref
	}
	for _, m := range modules {
		d := dependency{Ref: refs[m.Path]}
		for _, path := range slices.Sorted(maps.Keys(m.needs)) {
			d.DependsOn = append(d.DependsOn, refs[path])
		}
		b.Dependencies = append(b.Dependencies, d)
	}
	text, err := json.MarshalIndent(b, "", "  ")
	return append(text, '\n'), err
}

// application is the binary itself.
func application(r release, t target, m *module, sum [sha256.Size]byte) component {
	purl := fmt.Sprintf("pkg:golang/%s@%s?type=module&goos=%s&goarch=%s", m.Path, url.QueryEscape(r.version), t.os, t.arch)
	return component{Ref: purl, Type: "application", Name: m.Path, Version: r.version, PURL: purl,
		Hashes: []hash{{"SHA-256", hex.EncodeToString(sum[:])}}}
}

// componentOf is a module. Its hash is that of go.sum, in the digits of CycloneDX.
func componentOf(m *module) (component, error) {
	purl := fmt.Sprintf("pkg:golang/%s@%s?type=module", m.Path, url.QueryEscape(m.Version))
	c := component{Ref: purl, Type: "library", Name: m.Path, Version: m.Version, Scope: "required", PURL: purl}
	if m.Main || m.Path == std {
		return c, nil
	}
	sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:"))
	if err != nil || len(sum) != sha256.Size {
		return c, fmt.Errorf("%s: the sum %q is not one of go.sum", m.Path, m.Sum)
	}
	c.Hashes = []hash{{"SHA-256", hex.EncodeToString(sum)}}
	return c, nil
}

// serial is a UUID (RFC 9562, version 8) made of a hash, so that it is always the same.
func serial(sum [sha256.Size]byte) string {
	u := sum[:16]
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}
