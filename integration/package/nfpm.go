package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// nfpmTool makes the packages. It is run as a tool, like the linter, so that its 150
// modules are not the ambassador's.
const nfpmTool = "github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2"

const (
	defaultMaintainer = "Ambassador maintainers <maintainers@localhost>"
	summary           = "makes network connections for local programs"
	description       = summary + `
A program speaks plain TCP to the ambassador beside it, and the ambassador
opens the connection with the right certificate, after STARTTLS if the
protocol wants it. It checks the health of servers, balances, says of each
connection how it ended and why, and can be the only way out of a host.`
)

// content is a file of a package, as nfpm reads it.
type content struct {
	Source string    `json:"src,omitempty"`
	Dest   string    `json:"dst"`
	Type   string    `json:"type,omitempty"`
	Info   *fileInfo `json:"file_info,omitempty"`
}

type fileInfo struct {
	Mode fs.FileMode `json:"mode"`
}

// nfpm makes a package of s in one of nfpm's formats.
func (b *builder) nfpm(s *staged, format string) error {
	cfg, err := b.nfpmConfig(s, format)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return err
	}
	file := filepath.Join(s.dir, "nfpm."+format+".yaml") // JSON is YAML
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return err
	}
	name, err := b.packageName(s, format)
	if err != nil {
		return err
	}
	// GOOS and GOARCH are of the tool, not of the package.
	env := []string{"GOFLAGS=", "GOWORK=off", "GOOS=", "GOARCH=", fmt.Sprintf("SOURCE_DATE_EPOCH=%d", b.date.Unix())}
	args := append(b.tool[1:len(b.tool):len(b.tool)], "package", "-f", file, "-p", format, "-t", filepath.Join(b.out, name))
	if _, err := output(s.dir, env, b.tool[0], args...); err != nil {
		return err
	}
	b.made = append(b.made, name)
	return nil
}

// nfpmConfig is the description of a package.
func (b *builder) nfpmConfig(s *staged, format string) (map[string]any, error) {
	version, err := packageVersion(b.version, format)
	if err != nil {
		return nil, err
	}
	cfg := map[string]any{
		"name": "ambassador", "arch": s.arch, "platform": s.os, "version": version, "version_schema": "none", "section": "net", "priority": "optional",
		"maintainer": b.maintainer, "description": description, "mtime": b.date.Format(time.RFC3339),
		"contents": s.contents(format), "disable_globbing": true,
		"rpm": map[string]any{"buildhost": "reproducible", "summary": summary},
	}
	if format != "apk" { // Alpine has no systemd
		cfg["recommends"] = []string{"ca-certificates"}
		cfg["scripts"] = map[string]string{"postinstall": s.path("postinst"), "preremove": s.path("prerm"), "postremove": s.path("postrm")}
	}
	return cfg, nil
}

func packageVersion(version, format string) (string, error) {
	if format == "apk" {
		return apkVersion(version)
	}
	return debVersion(version), nil
}

// packageName is the name of a package's file, after the habit of its format.
func (b *builder) packageName(s *staged, format string) (string, error) {
	version, err := packageVersion(b.version, format)
	machine := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[s.arch]
	switch {
	case err != nil:
		return "", err
	case format == "deb" || machine == "":
		return fmt.Sprintf("ambassador_%s_%s.%s", version, s.arch, format), nil
	case format == "rpm":
		return fmt.Sprintf("ambassador-%s-1.%s.rpm", version, machine), nil
	}
	return fmt.Sprintf("ambassador_%s_%s.apk", version, machine), nil
}

func (s *staged) path(name string) string { return filepath.Join(s.dir, name) }

// contents lists the files of a package.
func (s *staged) contents(format string) []content {
	const doc = "/usr/share/doc/ambassador/"
	file := func(name, to string) content { return content{Source: s.path(name), Dest: to, Info: &fileInfo{0o644}} }
	out := []content{
		{Source: s.path(binaryName), Dest: "/usr/bin/ambassador", Info: &fileInfo{0o755}},
		{Dest: "/etc/ambassador", Type: "dir", Info: &fileInfo{0o755}},
		{Source: s.path("default.yaml"), Dest: "/etc/ambassador/ambassador.yaml", Type: "config|noreplace", Info: &fileInfo{0o644}},
		file("ambassador.1.gz", "/usr/share/man/man1/ambassador.1.gz"),
		file("ambassador.bash", "/usr/share/bash-completion/completions/ambassador"),
		file("ambassador.fish", "/usr/share/fish/vendor_completions.d/ambassador.fish"),
	}
	out = append(out, file("LICENCES", doc+"LICENCES"))
	if format == "deb" {
		out = append(out, file("_ambassador", "/usr/share/zsh/vendor-completions/_ambassador"), file("copyright", doc+"copyright"), file("changelog.gz", doc+"changelog.gz"),
			file("lintian-overrides", "/usr/share/lintian/overrides/ambassador"))
	} else {
		out = append(out, file("_ambassador", "/usr/share/zsh/site-functions/_ambassador"))
	}
	if format == "rpm" { // rpm removes only folders that belong to a package; several packages may have one
		for _, dir := range []string{"doc/ambassador", "doc/ambassador/examples", "fish", "fish/vendor_completions.d", "zsh", "zsh/site-functions", "bash-completion", "bash-completion/completions"} {
			out = append(out, content{Dest: "/usr/share/" + dir, Type: "dir", Info: &fileInfo{0o755}})
		}
	}
	if format != "apk" {
		out = append(out, file("usr/ambassador.service", "/usr/lib/systemd/system/ambassador.service"), file("usr/ambassador@.service", "/usr/lib/systemd/system/ambassador@.service"),
			file("ambassador.conf", "/usr/lib/sysusers.d/ambassador.conf"), file("ambassador.socket", doc+"examples/ambassador.socket"))
	}
	return out
}
