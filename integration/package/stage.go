package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// packageFiles are the files of the packages that are only there.
//
//go:embed files
var packageFiles embed.FS

// staged is what is built for one target: the binary and what comes with it.
type staged struct {
	target
	dir    string            // has the binary and the files, under their names
	files  map[string][]byte // by name; the binary excepted
	binary []byte
	sbom   []byte
}

// binaryName is the name of the binary in a staged folder, and in an archive.
const binaryName = "ambassador"

// goEnv is the environment of builds for t.
func goEnv(t target) []string {
	return []string{"CGO_ENABLED=0", "GOOS=" + t.os, "GOARCH=" + t.arch, "GOFLAGS=", "GOWORK=off", "GOEXPERIMENT=", "GOAMD64=v1", "GOARM64=v8.0"}
}

// build makes the binary for t.
func (b *builder) build(t target, path string) error {
	_, err := b.command(goEnv(t), "go", "build", "-tags", b.tags, "-trimpath", "-buildvcs=false",
		"-ldflags", fmt.Sprintf("-s -w -X main.version=%s -X main.commit=%s -X main.date=%s", b.version, b.commit, b.date.Format("2006-01-02T15:04:05Z")),
		"-o", path, "./cmd/ambassador")
	return err
}

// native returns a binary that this host can run, of the same source and version.
func (b *builder) native(s *staged) (string, error) {
	if here := (target{runtime.GOOS, runtime.GOARCH}); here != s.target {
		file := filepath.Join(b.scratch, "native")
		if _, err := os.Stat(file); err == nil {
			return file, nil
		}
		return file, b.build(here, file)
	}
	return filepath.Join(s.dir, binaryName), nil
}

// stage builds the binary for t and the files that come with it.
func (b *builder) stage(t target) (*staged, error) {
	s := &staged{target: t, dir: filepath.Join(b.scratch, t.os+"-"+t.arch), files: map[string][]byte{}}
	binary := filepath.Join(s.dir, binaryName)
	if err := b.build(t, binary); err != nil {
		return nil, err
	}
	modules, err := b.modules(t)
	if err == nil {
		err = compare(binary, modules)
	}
	if err != nil {
		return nil, err
	}
	if s.binary, err = os.ReadFile(binary); err != nil {
		return nil, err
	}
	if s.sbom, err = newBOM(b.release, t, s.binary, modules); err != nil {
		return nil, err
	}
	if s.files["LICENCES"], err = licences(modules); err != nil {
		return nil, err
	}
	if err := b.printed(s); err != nil {
		return nil, err
	}
	return s, b.sourced(s)
}

// printed adds what the binary prints about itself.
func (b *builder) printed(s *staged) error {
	native, err := b.native(s)
	if err != nil {
		return err
	}
	for name, args := range map[string][]string{
		"ambassador.1": {"help", "--man"}, "ambassador.bash": {"completion", "bash"}, "_ambassador": {"completion", "zsh"}, "ambassador.fish": {"completion", "fish"},
		"ambassador.service": {"print", "unit"}, "ambassador@.service": {"print", "instances"}, "ambassador.socket": {"print", "socket"}, "ambassador.yaml": {"print", "config"},
	} {
		if s.files[name], err = b.command(nil, native, args...); err != nil {
			return err
		}
	}
	if s.files["ambassador.1.gz"], err = zipped(s.files["ambassador.1"]); err != nil {
		return err
	}
	s.files["default.yaml"] = commented(s.files["ambassador.yaml"])
	return nil
}

// sourced adds the files of this package, and makes the folder complete.
func (b *builder) sourced(s *staged) (err error) {
	entries, err := packageFiles.ReadDir("files")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if s.files[e.Name()], err = packageFiles.ReadFile(path.Join("files", e.Name())); err != nil {
			return err
		}
	}
	for _, unit := range []string{"ambassador.service", "ambassador@.service"} {
		s.files["usr/"+unit] = bytes.ReplaceAll(s.files[unit], []byte("/usr/local/bin/"), []byte("/usr/bin/"))
	}
	if s.files["changelog.gz"], err = zipped(b.changelog()); err != nil {
		return err
	}
	for name, text := range s.files {
		file := filepath.Join(s.dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// changelog is Debian's, which has a fixed form. The user's is in the manual.
func (b *builder) changelog() []byte {
	return fmt.Appendf(nil, "ambassador (%s) stable; urgency=medium\n\n  * Built from commit %s.\n    The changes are in `ambassador help install`.\n\n -- %s  %s\n",
		debVersion(b.version), b.commit, b.maintainer, b.date.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
}

// zipped is text, compressed; the same text gives the same bytes.
func zipped(text []byte) ([]byte, error) {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(text); err != nil {
		return nil, err
	}
	err = z.Close()
	return out.Bytes(), err
}

// defaultHeader begins the configuration file of the packages.
const defaultHeader = `## The configuration of the ambassador. As installed it sets nothing, and the service does not
## start with it. Remove the # in the first column (sed -i 's/^#//' does), then edit.
##
##   ambassador check                       finds every mistake, in files too
##   ambassador test                        connects once, and tells which stage fails
##   systemctl enable --now ambassador      starts it, now and with the host
##   ambassador status                      tells whether it is ready, and what fails
##
## Certificates and keys belong here, too. The folder gives them its group, the ambassador's:
##
##   install -m 640 client.crt client.key ca.crt /etc/ambassador/
##
## ` + "`ambassador help install` explains this, `ambassador help configuration` every key." + `

`

// commented is a sample configuration as the packages install it: all of it is comments.
func commented(sample []byte) []byte {
	_, body, _ := bytes.Cut(sample, []byte("\n\n")) // the sample's own header ends there
	lines := regexp.MustCompile(`(?m)^(.+)$`).ReplaceAll(body, []byte("#$1"))
	return append([]byte(defaultHeader), lines...)
}

// tarball is an archive of a target, for systems without a package.
func (b *builder) tarball(s *staged) ([]byte, error) {
	names := []string{"LICENCES", "ambassador.1", "ambassador.bash", "_ambassador", "ambassador.fish", "ambassador.yaml"}
	if s.os == "linux" {
		names = append(names, "ambassador.service", "ambassador@.service", "ambassador.socket")
	}
	slices.Sort(names)
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(z)
	add := func(name string, mode int64, text []byte) {
		if err == nil {
			err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: b.baseName(s.target) + "/" + name, Mode: mode, Size: int64(len(text)), ModTime: b.date, Format: tar.FormatPAX})
		}
		if err == nil {
			_, err = w.Write(text)
		}
	}
	add(binaryName, 0o755, s.binary)
	for _, name := range names {
		add(name, 0o644, s.files[name])
	}
	if err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	err = z.Close()
	return out.Bytes(), err
}

// sums writes SHA256SUMS, for sha256sum -c.
func (b *builder) sums() error {
	names := slices.Sorted(slices.Values(b.made))
	var lines strings.Builder
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(b.out, name))
		if err != nil {
			return err
		}
		fmt.Fprintf(&lines, "%x  %s\n", sha256.Sum256(text), name)
	}
	return b.write("SHA256SUMS", []byte(lines.String()))
}
