package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// release is what is built.
type release struct {
	version string    // v1.2.3, or Go's pseudo-version
	commit  string    // in full
	date    time.Time // of the commit, and of every file in the packages; UTC
}

// newRelease takes from git what the options do not say.
func newRelease(o options, dir string) (r release, err error) {
	r = release{version: o.version, commit: o.commit}
	if o.version == "" || o.commit == "" || o.date == "" {
		if r, err = gitRelease(dir); err != nil && (o.version == "" || o.commit == "") {
			return r, fmt.Errorf("%w\nwithout git give -version, -commit and -date", err)
		}
	}
	if o.version != "" {
		r.version = o.version
	}
	if o.commit != "" {
		r.commit = o.commit
	}
	if !versionSyntax.MatchString(r.version) {
		return r, fmt.Errorf("version %q: not like v1.2.3 or v1.2.3-rc.1", r.version)
	}
	return r, r.setDate(o.date)
}

// versionSyntax is Go's syntax of versions.
var versionSyntax = regexp.MustCompile(`^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// setDate sets the date from the option, else from SOURCE_DATE_EPOCH, else leaves that
// of the commit.
func (r *release) setDate(option string) (err error) {
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	switch {
	case option != "":
		r.date, err = time.Parse(time.RFC3339, option)
	case epoch != "":
		r.date, err = unixTime(epoch)
	}
	if err != nil {
		return fmt.Errorf("-date or SOURCE_DATE_EPOCH: %w", err)
	}
	if r.date.IsZero() {
		return fmt.Errorf("the date is not known; give -date or SOURCE_DATE_EPOCH")
	}
	r.date = r.date.UTC()
	return nil
}

func unixTime(seconds string) (time.Time, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(seconds), 10, 64)
	return time.Unix(n, 0).UTC(), err
}

// gitRelease asks git about the commit in dir.
func gitRelease(dir string) (r release, err error) {
	git := func(args ...string) string {
		text, failed := output(dir, nil, "git", args...)
		if err == nil {
			err = failed
		}
		return strings.TrimSpace(string(text))
	}
	r.commit = git("rev-parse", "HEAD")
	seconds := git("show", "-s", "--format=%ct", "HEAD")
	changes := git("status", "--porcelain")
	if err != nil {
		return r, err
	}
	if r.date, err = unixTime(seconds); err != nil {
		return r, err
	}
	const versions = "v[0-9]*.[0-9]*.[0-9]*"
	tag, _ := output(dir, nil, "git", "describe", "--tags", "--exact-match", "--match", versions)
	if r.version = strings.TrimSpace(string(tag)); r.version == "" {
		before, _ := output(dir, nil, "git", "describe", "--tags", "--abbrev=0", "--match", versions)
		r.version = pseudoVersion(strings.TrimSpace(string(before)), r.commit, r.date)
	}
	if changes != "" {
		r.version += "+dirty"
	}
	return r, nil
}

// pseudoVersion is the version that Go gives to a commit after the tag before; empty if
// there is none. It is higher than that tag, and lower than the next release.
func pseudoVersion(before, commit string, date time.Time) string {
	at := date.Format("20060102150405") + "-" + commit[:min(12, len(commit))]
	if before == "" {
		return "v0.0.0-" + at
	}
	if strings.Contains(before, "-") {
		return before + ".0." + at
	}
	i := strings.LastIndexByte(before, '.')
	patch, _ := strconv.Atoi(before[i+1:])
	return fmt.Sprintf("%s.%d-0.%s", before[:i], patch+1, at)
}

// debVersion is a version in the order of dpkg and rpm, where ~ is before the end.
func debVersion(version string) string {
	v, meta, dirty := strings.Cut(strings.TrimPrefix(version, "v"), "+")
	v = strings.ReplaceAll(strings.Replace(v, "-", "~", 1), "-", ".")
	if dirty {
		v += "+" + meta
	}
	return v
}

// apkParts finds in the part of a version after its - what apk has a suffix for.
var apkParts = regexp.MustCompile(`^(alpha|beta|rc)\.?(\d+)$|(\d{14})-[0-9a-f]+$`)

// apkVersion is a version in apk's syntax, which has no commit and nothing after +.
func apkVersion(version string) (string, error) {
	v, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), "+")
	v, pre, is := strings.Cut(v, "-")
	if !is {
		return v, nil
	}
	m := apkParts.FindStringSubmatch(pre)
	switch {
	case m == nil:
		return "", fmt.Errorf("version %s cannot be written in apk's syntax; use alpha, beta or rc with a number, or leave out apk of -formats", version)
	case m[1] != "":
		return v + "_" + m[1] + m[2], nil
	}
	return v + "_pre" + m[3], nil
}

// buildTags returns the build tags of the Dockerfile, which is the one place that has
// them.
func buildTags(source string) (string, error) {
	text, err := os.ReadFile(filepath.Join(source, "Dockerfile"))
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`(?m)^RUN .*go build .*-tags ([a-z0-9_,]+) `).FindSubmatch(text)
	if m == nil {
		return "", fmt.Errorf("%s: no line RUN … go build -tags …", filepath.Join(source, "Dockerfile"))
	}
	return string(m[1]), nil
}
