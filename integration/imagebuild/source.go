package main

import (
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// source is what an image is made of, and from.
type source struct {
	repository, version, url string
	revision                 string // the commit; empty if it is unknown
	created                  time.Time
}

// sourceOf finds version, commit and date. The date is $SOURCE_DATE_EPOCH, else that of
// the commit, else 1970: never that of the build.
func sourceOf(o options) (*source, error) {
	s := &source{repository: o.repository, version: o.version, url: o.source}
	s.revision, _ = s.git("rev-parse", "HEAD")
	if s.version == "" {
		version, err := s.git("describe", "--tags", "--always", "--dirty")
		if err != nil {
			return nil, fmt.Errorf("the version is not known: %w; give --version", err)
		}
		s.version = version
	}
	text, given := os.LookupEnv("SOURCE_DATE_EPOCH")
	if !given {
		text, _ = s.git("log", "-1", "--format=%ct")
	}
	if text == "" {
		text = "0"
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("SOURCE_DATE_EPOCH: %q is no number of seconds", text)
	}
	s.created = time.Unix(seconds, 0).UTC()
	return s, nil
}

// date is when the image was made, as labels and the binary say it.
func (s *source) date() string { return s.created.Format(time.RFC3339) }

func (s *source) git(args ...string) (string, error) {
	cmd := exec.Command("git", append([]string{"-C", s.repository}, args...)...)
	text, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(text)), nil
}

// buildLine finds the command that builds the binary in a Dockerfile.
var buildLine = regexp.MustCompile(`(?m)^RUN (.*\bgo build .*) -o /out/ambassador (.*)$`)

// binary builds the binary for a platform, by the line of the Dockerfile.
func (s *source) binary(p *v1.Platform) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(s.repository, "Dockerfile"))
	if err != nil {
		return nil, err
	}
	line := buildLine.FindSubmatch(text)
	if line == nil {
		return nil, errors.New("the Dockerfile has no line RUN … go build … -o /out/ambassador …")
	}
	dir, err := os.MkdirTemp("", "image")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("sh", "-ec", string(line[1])+` -o "$OUT" `+string(line[2]))
	cmd.Dir = s.repository
	cmd.Env = append(os.Environ(), "GOOS="+p.OS, "GOARCH="+p.Architecture, "VERSION="+s.version, "COMMIT="+s.revision, "DATE="+s.date(), "OUT="+filepath.Join(dir, "ambassador"))
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build for %s: %w\n%s", p, err, text)
	}
	return os.ReadFile(filepath.Join(dir, "ambassador"))
}

// rootsOf returns CA certificates in PEM: those of the file, else Mozilla's. A file of
// certificates cannot have conditions, so the roots that Mozilla accepts only with
// conditions are left out.
func rootsOf(file string) ([]byte, error) {
	var out []byte
	if file != "" {
		text, err := os.ReadFile(file)
		if err == nil && !strings.Contains(string(text), "-----BEGIN CERTIFICATE-----") {
			err = fmt.Errorf("%s: no certificate in it; give a file in PEM", file)
		}
		return text, err
	}
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate})...)
		}
	}
	return out, nil
}
