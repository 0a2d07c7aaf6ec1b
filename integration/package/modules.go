package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// module is a part of a binary: a Go module, or the standard library.
type module struct {
	Path, Version, Dir string
	Sum                string // as in go.sum; empty for the standard library
	Main               bool
	Replace            *module
	needs              map[string]bool // paths of the modules that its packages import
}

// std is the path under which the standard library is listed.
const std = "std"

// listed is a package of `go list`.
type listed struct {
	ImportPath string
	Imports    []string
	ImportMap  map[string]string
	Module     *module
	Standard   bool
}

// modules returns the modules of which packages are in a binary, sorted by path, with
// what each needs.
func (b *builder) modules(t target) ([]*module, error) {
	text, err := b.command(goEnv(t), "go", "list", "-deps", "-tags", b.tags, "-json=ImportPath,Imports,ImportMap,Module,Standard", "./cmd/ambassador")
	if err != nil {
		return nil, err
	}
	packages, err := decodeListed(text)
	if err != nil {
		return nil, err
	}
	root, err := output(b.source, nil, "go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	return group(packages, strings.TrimSpace(string(root))), nil
}

func decodeListed(text []byte) (out []listed, err error) {
	for d := json.NewDecoder(bytes.NewReader(text)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
}

// group makes modules of packages.
func group(packages []listed, goroot string) []*module {
	all, of := map[string]*module{}, map[string]string{}
	for _, p := range packages {
		m := p.Module
		if p.Standard || m == nil {
			m = &module{Path: std, Version: strings.TrimPrefix(runtime.Version(), "go"), Dir: goroot}
		}
		if m.Replace != nil {
			m = m.Replace
		}
		if all[m.Path] == nil {
			all[m.Path] = m
			m.needs = map[string]bool{}
		}
		of[p.ImportPath] = m.Path
	}
	for _, p := range packages {
		from := of[p.ImportPath]
		for _, imported := range p.Imports {
			if actual, ok := p.ImportMap[imported]; ok {
				imported = actual
			}
			if to := of[imported]; to != "" && to != from {
				all[from].needs[to] = true
			}
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b *module) int { return strings.Compare(a.Path, b.Path) })
}

// compare returns an error if the binary was not built of these modules.
func compare(binary string, modules []*module) error {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return err
	}
	var want, got []string
	for _, d := range info.Deps {
		want = append(want, d.Path+"@"+d.Version)
	}
	for _, m := range modules {
		if !m.Main && m.Path != std {
			got = append(got, m.Path+"@"+m.Version)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		return fmt.Errorf("%s was built of the modules %q, and the list has %q", binary, want, got)
	}
	return nil
}

// licenceFile matches the names of files that must go with a binary.
var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|copyright|patents)([.-].*)?$`)

// licences returns the licence texts of the modules. A text that several modules share
// appears once. A module without any is an error.
func licences(modules []*module) ([]byte, error) {
	var order []string
	users := map[string][]string{}
	for _, m := range modules {
		texts, err := licencesOf(m)
		if err != nil {
			return nil, err
		}
		if len(texts) == 0 && !m.Main {
			return nil, fmt.Errorf("%s has no licence in %s", m.Path, m.Dir)
		}
		for _, text := range texts {
			if users[text] == nil {
				order = append(order, text)
			}
			users[text] = append(users[text], strings.TrimSpace(m.Path+" "+m.Version))
		}
	}
	out := bytes.NewBufferString("Licences of the parts of the binary ambassador.\n")
	for _, text := range order {
		fmt.Fprintf(out, "\n%s\n%s\n\n%s\n", strings.Repeat("=", 78), strings.Join(users[text], "\n"), text)
	}
	return out.Bytes(), nil
}

func licencesOf(m *module) (texts []string, err error) {
	entries, err := os.ReadDir(m.Dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !licenceFile.MatchString(e.Name()) || filepath.Ext(e.Name()) == ".go" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(m.Dir, e.Name()))
		if err != nil {
			return nil, err
		}
		texts = append(texts, strings.TrimSpace(strings.ReplaceAll(string(text), "\r\n", "\n")))
	}
	return texts, nil
}
