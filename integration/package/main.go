// Command package builds what users install: static binaries, Debian, RPM and Alpine
// packages, archives, a list of the parts of each binary (CycloneDX), and checksums:
//
//	go run ./integration/package
//	go run ./integration/package -out dist -targets linux/amd64 -formats deb,tar.gz
//
// Version, commit and date are those of git. The same commit and the same version of Go
// give the same bytes, in any folder and at any time: every file has the commit's time
// (or SOURCE_DATE_EPOCH), and no path of this host is in a binary.
//
// The packages are made by nfpm, which is run and is no dependency of the module.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "package:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	source, out           string
	version, commit, date string
	targets, formats      string
	maintainer            string
	nfpm                  string
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("package", flag.ContinueOnError)
	f.StringVar(&o.source, "source", ".", "folder of the source")
	f.StringVar(&o.out, "out", "dist", "folder of the results; it is made, and the results of the last run in it are removed")
	f.StringVar(&o.version, "version", "", "the version, like v1.2.3 (default: the tag, or a version made of the commit)")
	f.StringVar(&o.commit, "commit", "", "the commit (default: that of git)")
	f.StringVar(&o.date, "date", "", "the time of the release, RFC 3339 (default: $SOURCE_DATE_EPOCH, or that of the commit)")
	f.StringVar(&o.targets, "targets", "linux/amd64,linux/arm64,darwin/arm64", "systems, each OS/ARCH")
	f.StringVar(&o.formats, "formats", "tar.gz,deb,rpm,apk", "what to make; packages are for Linux only")
	f.StringVar(&o.maintainer, "maintainer", defaultMaintainer, "maintainer of the packages, NAME <ADDRESS>")
	f.StringVar(&o.nfpm, "nfpm", "", "the program nfpm (default: "+nfpmTool+", which go fetches)")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q; all options are flags", f.Arg(0))
	}
	return o, nil
}

func run(args []string, stdout io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	b, err := newBuilder(o)
	if err != nil {
		return err
	}
	defer b.close()
	fmt.Fprintf(stdout, "ambassador %s, commit %s, %s\n", b.version, b.commit, b.date.Format(time.RFC3339))
	for _, t := range b.targets {
		if err := b.make(t); err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
	}
	if err := b.sums(); err != nil {
		return err
	}
	return b.report(stdout)
}

// target is a system to build for.
type target struct{ os, arch string }

func (t target) String() string { return t.os + "/" + t.arch }

// builder has what all targets share.
type builder struct {
	release
	source     string // the root of the module
	out        string
	scratch    string
	tags       string // build tags, from the Dockerfile
	targets    []target
	formats    []string
	maintainer string
	tool       []string // the command that runs nfpm
	made       []string // names of files in out, in the order in which they were made
}

func newBuilder(o options) (b *builder, err error) {
	b = &builder{formats: strings.Split(o.formats, ","), maintainer: o.maintainer, tool: []string{"go", "run", nfpmTool}}
	if o.nfpm != "" {
		if o.nfpm, err = filepath.Abs(o.nfpm); err != nil {
			return nil, err
		}
		b.tool = []string{o.nfpm}
	}
	for _, f := range b.formats {
		if !slices.Contains([]string{"tar.gz", "deb", "rpm", "apk"}, f) {
			return nil, fmt.Errorf("-formats %s: unknown format %q; use tar.gz, deb, rpm or apk", o.formats, f)
		}
	}
	for name := range strings.SplitSeq(o.targets, ",") {
		system, arch, ok := strings.Cut(name, "/")
		if !ok {
			return nil, fmt.Errorf("-targets %s: %q is not OS/ARCH, like linux/amd64", o.targets, name)
		}
		b.targets = append(b.targets, target{system, arch})
	}
	if b.source, err = filepath.Abs(o.source); err != nil {
		return nil, err
	}
	if b.out, err = filepath.Abs(o.out); err != nil {
		return nil, err
	}
	if b.tags, err = buildTags(b.source); err != nil {
		return nil, err
	}
	if b.release, err = newRelease(o, b.source); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return nil, err
	}
	if err := removeMade(b.out); err != nil {
		return nil, err
	}
	b.scratch, err = os.MkdirTemp("", "ambassador-package")
	return b, err
}

// removeMade removes what an earlier run wrote into a folder: so a pattern such as
// ambassador_*.deb has one file, and SHA256SUMS has all.
func removeMade(out string) error {
	entries, failed := os.ReadDir(out)
	for _, e := range entries {
		if isMade.MatchString(e.Name()) {
			failed = errors.Join(failed, os.Remove(filepath.Join(out, e.Name())))
		}
	}
	return failed
}

// isMade are the names of results.
var isMade = regexp.MustCompile(`^(SHA256SUMS|ambassador[_-].*\.(cdx\.json|tar\.gz|deb|rpm|apk))$`)

func (b *builder) close() { os.RemoveAll(b.scratch) }

// make builds everything for one target.
func (b *builder) make(t target) error {
	s, err := b.stage(t)
	if err != nil {
		return err
	}
	if err := b.write(b.baseName(t)+".cdx.json", s.sbom); err != nil {
		return err
	}
	for _, format := range b.formats {
		switch {
		case format == "tar.gz":
			text, err := b.tarball(s)
			if err == nil {
				err = b.write(b.baseName(t)+".tar.gz", text)
			}
			if err != nil {
				return err
			}
		case t.os == "linux":
			if err := b.nfpm(s, format); err != nil {
				return fmt.Errorf("%s: %w", format, err)
			}
		}
	}
	return nil
}

// baseName is the name of a file without its extension.
func (b *builder) baseName(t target) string {
	return fmt.Sprintf("ambassador_%s_%s_%s", strings.TrimPrefix(b.version, "v"), t.os, t.arch)
}

// write makes a file of the result.
func (b *builder) write(name string, text []byte) error {
	b.made = append(b.made, name)
	return os.WriteFile(filepath.Join(b.out, name), text, 0o644)
}

// report prints the results with their sizes.
func (b *builder) report(w io.Writer) error {
	for _, name := range b.made {
		info, err := os.Stat(filepath.Join(b.out, name))
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%10d  %s\n", info.Size(), filepath.Join(b.out, name))
	}
	return nil
}

// command runs a program in the source's folder and returns its standard output. The
// settings of go env do not change what is built.
func (b *builder) command(env []string, name string, args ...string) ([]byte, error) {
	return output(b.source, env, name, args...)
}

func output(dir string, env []string, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return text, nil
}
