package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// user is the user and group of the process, those of distroless's nonroot.
const user = 65532

// image is the image for a platform.
func (s *source) image(p *v1.Platform, roots []byte) (v1.Image, error) {
	binary, err := s.binary(p)
	if err != nil {
		return nil, err
	}
	content, err := layerOf(binary, roots)
	if err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
	layer, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(base, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: s.created}, CreatedBy: "integration/image"}})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant, config.Created = p.OS, p.Architecture, p.Variant, v1.Time{Time: s.created}
	config.Config = s.config()
	return mutate.ConfigFile(img, config)
}

// config says how the image is run, as the last stage of the Dockerfile does.
func (s *source) config() v1.Config {
	labels := map[string]string{
		"org.opencontainers.image.title":       "ambassador",
		"org.opencontainers.image.description": "Makes the network connections of a program that cannot be changed",
		"org.opencontainers.image.version":     s.version,
		"org.opencontainers.image.created":     s.date(),
	}
	if s.revision != "" {
		labels["org.opencontainers.image.revision"] = s.revision
	}
	if s.url != "" {
		labels["org.opencontainers.image.source"] = s.url
	}
	return v1.Config{
		Entrypoint: []string{"/ambassador"}, Cmd: []string{"run"}, User: fmt.Sprintf("%d:%d", user, user),
		Env: []string{"RUNTIME_DIRECTORY=/run/ambassador"}, Labels: labels,
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "/ambassador", "wait", "--timeout", "1s"},
			Interval: 10 * time.Second, Timeout: 3 * time.Second, StartPeriod: 30 * time.Second, Retries: 3},
	}
}

// layerOf is the only layer, as a tar archive without dates and names of users.
func layerOf(binary, roots []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name    string
		mode    int64
		owner   int
		content []byte
	}{
		{"etc/", 0o755, 0, nil},
		{"etc/ssl/", 0o755, 0, nil},
		{"etc/ssl/certs/", 0o755, 0, nil},
		{"etc/ssl/certs/ca-certificates.crt", 0o644, 0, roots},
		{"run/", 0o755, 0, nil},
		{"run/ambassador/", 0o755, user, nil}, // the admin socket's
		{"tmp/", 0o1777, 0, nil},
		{"ambassador", 0o755, 0, binary},
	} {
		h := &tar.Header{Name: f.name, Mode: f.mode, Uid: f.owner, Gid: f.owner, Size: int64(len(f.content)),
			ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

// tagOf makes a version a tag: a + is not allowed in one.
func tagOf(version string) string {
	return regexp.MustCompile(`[^\w.-]`).ReplaceAllString(version, "_")
}

// writeArchive writes what `docker load` reads, which has one platform.
func writeArchive(o options, version string, p *v1.Platform, img v1.Image) error {
	tag, err := name.NewTag(o.name+":"+tagOf(version), name.WithDefaultRegistry(""))
	if err != nil {
		return err
	}
	file := filepath.Join(o.out, fmt.Sprintf("ambassador-%s-%s.tar", p.OS, p.Architecture))
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	fmt.Printf("%s %s %s\n", file, tag, digest)
	return nil
}
