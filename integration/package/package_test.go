package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPseudoVersion(t *testing.T) {
	date := time.Date(2026, 11, 29, 6, 31, 2, 0, time.UTC)
	for before, want := range map[string]string{
		"":            "v0.0.0-20261129063102-655ad3f2a1b0",
		"v1.2.3":      "v1.2.4-0.20261129063102-655ad3f2a1b0",
		"v1.2.3-rc.1": "v1.2.3-rc.1.0.20261129063102-655ad3f2a1b0",
	} {
		if got := pseudoVersion(before, "655ad3f2a1b0ffff", date); got != want {
			t.Errorf("after %q: %s, want %s", before, got, want)
		}
	}
}

// TestPackageVersions: the versions of packages have the order of the releases; dpkg and
// rpm sort ~ before the end, and apk sorts _pre and _rc before it.
func TestPackageVersions(t *testing.T) {
	for version, want := range map[string][2]string{
		"v1.2.3":                             {"1.2.3", "1.2.3"},
		"v1.2.3-rc.1":                        {"1.2.3~rc.1", "1.2.3_rc1"},
		"v0.0.0-20261129063102-655ad3f2a1b0": {"0.0.0~20261129063102.655ad3f2a1b0", "0.0.0_pre20261129063102"},
		"v1.2.4-0.20261129063102-655ad3f2a1b0+dirty": {"1.2.4~0.20261129063102.655ad3f2a1b0+dirty", "1.2.4_pre20261129063102"},
	} {
		apk, err := apkVersion(version)
		if got := [2]string{debVersion(version), apk}; got != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", version, got, err, want)
		}
	}
	if v, err := apkVersion("v1.0.0-nightly"); err == nil {
		t.Errorf("v1.0.0-nightly is %s for apk, which refuses that", v)
	}
}

// A second run leaves no package of the first one, and no file of the user's is removed.
func TestEarlierResultsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	kept := []string{"ambassador_notes.txt", "notes.deb"}
	for _, name := range append([]string{"SHA256SUMS", "ambassador_0.0.1_linux_amd64.tar.gz", "ambassador_0.0.1_linux_amd64.cdx.json", "ambassador_0.0.1_amd64.deb", "ambassador-0.0.1-1.x86_64.rpm", "ambassador_0.0.1_x86_64.apk"}, kept...) {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeMade(dir); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if !slices.Equal(left, kept) {
		t.Errorf("left: %q, want %q", left, kept)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	at := []string{"-source", "../..", "-out", t.TempDir(), "-commit", "0123", "-date", "2026-11-29T06:31:02Z"}
	for want, args := range map[string][]string{
		`unknown format "msi"`:                         {"-version", "v1.0.0", "-formats", "deb,msi"},
		`"linux" is not OS/ARCH`:                       {"-version", "v1.0.0", "-targets", "linux"},
		`version "1.0": not like v1.2.3`:               {"-version", "1.0"},
		`-date or SOURCE_DATE_EPOCH: parsing time "x"`: {"-version", "v1.0.0", "-date", "x"},
		`unknown argument "deb"`:                       {"deb"},
	} {
		if err := run(append(at[:len(at):len(at)], args...), os.Stdout); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", args, err, want)
		}
	}
}

func TestBuildTagsAreThoseOfTheDockerfile(t *testing.T) {
	text, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	if tags, err := buildTags("../.."); err != nil || !strings.Contains(string(text), " -tags "+tags+" -trimpath") {
		t.Errorf("%q, %v", tags, err)
	}
	if _, err := buildTags(t.TempDir()); err == nil {
		t.Error("no Dockerfile, and no error")
	}
}

// TestCommented: all of the packages' configuration is comments, and without the first # of
// each line the sample is left.
func TestCommented(t *testing.T) {
	sample, err := os.ReadFile("../../cmd/ambassador/assets/ambassador.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got := commented(sample)
	if line := regexp.MustCompile(`(?m)^[^#\n].*`).Find(got); line != nil {
		t.Errorf("not a comment: %q", line)
	}
	_, body, _ := bytes.Cut(sample, []byte("\n\n"))
	if undone := regexp.MustCompile(`(?m)^#`).ReplaceAll(got, nil); !bytes.HasSuffix(undone, body) || !bytes.HasPrefix(undone, []byte("# ")) {
		t.Errorf("uncommented it is\n%s", undone)
	}
}

// TestBOM asserts the parts of the list, their hashes, and who needs whom.
// TestFoldersOfTheRPM asserts that folders which a system may not have belong to the package:
// rpm leaves others behind when the package is removed.
func TestFoldersOfTheRPM(t *testing.T) {
	everywhere := []string{"/etc", "/usr/bin", "/usr/lib/systemd/system", "/usr/lib/sysusers.d", "/usr/share", "/usr/share/doc", "/usr/share/man/man1"}
	owned := map[string]bool{}
	all := (&staged{}).contents("rpm")
	for _, c := range all {
		owned[c.Dest] = owned[c.Dest] || c.Type == "dir"
	}
	for _, c := range all {
		for dir := path.Dir(c.Dest); !slices.Contains(everywhere, dir); dir = path.Dir(dir) {
			if dir == "/" || !owned[dir] {
				t.Errorf("%s: the folder %s belongs to no package", c.Dest, dir)
				break
			}
		}
	}
}

func TestBOM(t *testing.T) {
	packages := []listed{
		{ImportPath: "ambassador/cmd/ambassador", Imports: []string{"example.com/a", "fmt"}, Module: &module{Path: "ambassador", Main: true}},
		{ImportPath: "example.com/a", Imports: []string{"example.com/b/sub"}, Module: &module{Path: "example.com/a", Version: "v1.0.0", Sum: "h1:688QHn2X/5nRezKe2ueIVCt+NRqf7fl3AVQk+vaFcIo="}},
		{ImportPath: "example.com/b/sub", Module: &module{Path: "example.com/b", Version: "v2.0.0+incompatible", Sum: "h1:688QHn2X/5nRezKe2ueIVCt+NRqf7fl3AVQk+vaFcIo="}},
		{ImportPath: "fmt", Standard: true},
	}
	r := release{version: "v1.2.3", commit: "0123", date: time.Date(2026, 11, 29, 6, 31, 2, 0, time.UTC)}
	make := func(binary string) (text []byte, b bom) {
		t.Helper()
		text, err := newBOM(r, target{"linux", "amd64"}, []byte(binary), group(packages, t.TempDir()))
		if err == nil {
			err = json.Unmarshal(text, &b)
		}
		if err != nil {
			t.Fatal(err)
		}
		return text, b
	}
	text, b := make("binary")
	if again, _ := make("binary"); !bytes.Equal(text, again) {
		t.Error("the same binary has another list")
	}
	if _, other := make("another"); other.SerialNumber == b.SerialNumber {
		t.Error("another binary has the same serial number")
	}
	if len(b.Components) != 3 || b.Components[1].PURL != "pkg:golang/example.com/b@v2.0.0%2Bincompatible?type=module" ||
		b.Components[0].Hashes[0].Content != "ebcf101e7d97ff99d17b329edae788542b7e351a9fedf977015424faf685708a" {
		t.Errorf("components %+v", b.Components)
	}
	if !regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(b.SerialNumber) {
		t.Errorf("serial number %s", b.SerialNumber)
	}
	needs := map[string]int{}
	for _, d := range b.Dependencies {
		needs[d.Ref] = len(d.DependsOn)
	}
	if len(needs) != 4 || needs[b.Metadata.Component.Ref] != 2 || needs[b.Components[0].Ref] != 1 || needs[b.Components[1].Ref] != 0 {
		t.Errorf("dependencies %+v", b.Dependencies)
	}
	packages[1].Module.Sum = ""
	if _, err := newBOM(r, target{"linux", "amd64"}, nil, group(packages, t.TempDir())); err == nil {
		t.Error("a module without a sum is no error")
	}
}

// TestLicences: a shared text appears once, and a module without a licence is an error.
func TestLicences(t *testing.T) {
	with := func(name, text string) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	modules := []*module{{Path: "example.com/a", Version: "v1", Dir: with("LICENSE", "Shared text\n")}, {Path: "example.com/b", Version: "v2", Dir: with("Copying.md", "Shared text\r\n")}}
	text, err := licences(modules)
	if err != nil || bytes.Count(text, []byte("Shared text")) != 1 || !bytes.Contains(text, []byte("example.com/a v1\nexample.com/b v2\n")) {
		t.Errorf("%v\n%s", err, text)
	}
	if _, err := licences(append(modules, &module{Path: "example.com/c", Dir: with("licenses.go", "x")})); err == nil || !strings.Contains(err.Error(), "example.com/c has no licence") {
		t.Errorf("a module without a licence: %v", err)
	}
}
