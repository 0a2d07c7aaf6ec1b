package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// options are the flags.
type options struct {
	repository, out, name, version, platforms, roots, source string
}

func main() {
	var o options
	flag.StringVar(&o.repository, "repository", "../..", "the `folder` of the repository")
	flag.StringVar(&o.out, "out", "image", "the `folder` to write to; oci in it is replaced")
	flag.StringVar(&o.name, "name", "ambassador", "the `name` of the image in the docker archives")
	flag.StringVar(&o.version, "version", "", "the `version` (default: git describe --tags --always --dirty)")
	flag.StringVar(&o.platforms, "platforms", "linux/amd64,linux/arm64", "the `platforms`")
	flag.StringVar(&o.roots, "roots", "", "a `file` of CA certificates in PEM, in place of Mozilla's roots")
	flag.StringVar(&o.source, "source", "", "the `URL` of the source, for the label org.opencontainers.image.source")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "image: unexpected %q; see --help\n", flag.Arg(0))
		os.Exit(2)
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// run makes the images and prints a line for each file.
func run(o options) error {
	s, err := sourceOf(o)
	if err != nil {
		return err
	}
	roots, err := rootsOf(o.roots)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for text := range strings.SplitSeq(o.platforms, ",") {
		platform, err := v1.ParsePlatform(strings.TrimSpace(text))
		if err != nil || platform.OS != "linux" {
			return fmt.Errorf("--platforms: %q is not linux/ARCHITECTURE", text)
		}
		img, err := s.image(platform, roots)
		if err != nil {
			return err
		}
		if err := writeArchive(o, s.version, platform, img); err != nil {
			return err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
	}
	return writeLayout(filepath.Join(o.out, "oci"), o.name+":"+tagOf(s.version), index)
}

// writeLayout writes an OCI layout whose only entry is the index of all platforms.
func writeLayout(folder, ref string, index v1.ImageIndex) error {
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	to, err := layout.Write(folder, empty.Index)
	if err != nil {
		return err
	}
	if err := to.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": ref})); err != nil {
		return err
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	fmt.Printf("%s %s %s\n", folder, ref, digest)
	return nil
}
