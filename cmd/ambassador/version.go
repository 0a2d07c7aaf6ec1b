package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/carry"
)

// version is the release, commit the full commit, and date the commit's time in RFC
// 3339, set by the linker:
//
//	go build -ldflags "-X main.version=v1.2.3" ./cmd/ambassador
//
// What is empty is what Go knows of the build.
var version, commit, date string

// buildVersion is the release, or the module's version, or the commit.
func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return versionOf(info)
}

// commitLength is how many digits of a commit are printed for people.
const commitLength = 12

// versionOf returns the version in a build's information.
func versionOf(info *debug.BuildInfo) string {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision := settingOf(info, "vcs.revision")
	if revision == "" {
		return "devel"
	}
	if settingOf(info, "vcs.modified") == "true" {
		return short(revision) + "+changed"
	}
	return short(revision)
}

// settingOf returns a setting of the build; empty if Go did not record it.
func settingOf(info *debug.BuildInfo, key string) string {
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

func short(revision string) string { return revision[:min(commitLength, len(revision))] }

// buildCommit returns the commit that was built and its time; empty if unknown.
func buildCommit() (revision, when string) {
	info, ok := debug.ReadBuildInfo()
	if commit != "" || !ok {
		return commit, date
	}
	return settingOf(info, "vcs.revision"), settingOf(info, "vcs.time")
}

// versionReply is what `version --json` prints.
type versionReply struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"` // empty if unknown
	Date    string `json:"date,omitempty"`   // of the commit, RFC 3339; empty if unknown
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	// Handover is the version of the state of sessions that this program takes over in an
	// upgrade.
	Handover int `json:"handover"`
}

func newVersionReply() versionReply {
	v := versionReply{Version: buildVersion(), Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Handover: carry.Version}
	v.Commit, v.Date = buildCommit()
	return v
}

// String is the line for people.
func (v versionReply) String() string {
	var details []string
	if v.Commit != "" {
		details = append(details, strings.TrimSpace("commit "+short(v.Commit)+" "+v.Date))
	}
	details = append(details, v.Go, v.OS+"/"+v.Arch)
	return fmt.Sprintf("ambassador %s (%s)", v.Version, strings.Join(details, ", "))
}

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version, and the commit that was built", Example: "  ambassador version\n  ambassador version --json", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := newVersionReply()
			if asJSON {
				return output.WriteJSON(a.Stdout, v)
			}
			_, err := fmt.Fprintln(a.Stdout, v)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
