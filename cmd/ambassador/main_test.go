package main

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/program"
)

func TestMain(m *testing.M) {
	switch os.Getenv(cmdtest.As) {
	case "ambassador":
		os.Exit(runAlone())
	case "command":
		os.Exit(cmdtest.BeCommand(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// runFile runs a configuration file until the test ends.
func runFile(t *testing.T, path string) (out, log *cmdtest.Output) {
	t.Helper()
	t.Setenv("RUNTIME_DIRECTORY", cmdtest.ShortDir(t))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	out, log = cmdtest.NewOutput(), cmdtest.NewOutput()
	done := make(chan struct{})
	go func() { // the cleanup waits for it
		defer close(done)
		run(ctx, []string{"run", "-c", path}, strings.NewReader(""), out, log)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return out, log
}

func TestExitCodesAndMessages(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", cmdtest.ShortDir(t))
	taken := cmdtest.Occupied(t)
	good := cmdtest.WriteConfig(t, cmdtest.OneListener("127.0.0.1:1"))
	inUse := cmdtest.WriteConfig(t, strings.Replace(cmdtest.OneListener("127.0.0.1:1"), "127.0.0.1:0", taken, 1))
	plainFile := filepath.Join(t.TempDir(), "no-program")
	cmdtest.WriteFile(t, plainFile, "text")
	identity := cmdtest.WriteConfig(t, cmdtest.OneListener("127.0.0.1:1", `identities: {me: {files: {cert: absent.crt, key: absent.key}}}`))
	adminInUse := cmdtest.WriteConfig(t, cmdtest.OneListener("127.0.0.1:1", "admin: {listen: "+taken+"}"))
	metricsInUse := cmdtest.WriteConfig(t, cmdtest.OneListener("127.0.0.1:1", "metrics: {listen: "+taken+"}"))
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // patterns; an empty pattern expects no output
	}{
		{"", 0, `(?s)ambassador demo.*Run one:`, ""},
		{"help", 0, "Speak to a running one:", ""},
		{"help forward", 0, "--starttls postgres", ""},
		{"help nope", 2, "", "unknown command \"nope\"; see `ambassador --help`"},
		{"--help", 0, "ambassador forward", ""},
		{"run --help", 0, "-- ./legacy-app", ""},
		{"version", 0, `^ambassador \S+ \(go1\.\S+, \w+/\w+\)\n$`, ""},
		{"version --json", 0, `^{\n  "version": ".+",\n  "go": "go1.+",\n  "os": "\w+",\n  "arch": "\w+",\n  "handover": \d+\n}\n$`, ""},
		{"--version", 0, `^ambassador \S+\n$`, ""},
		{"completion bash", 0, "__ambassador", ""},
		{"completion zsh", 0, "#compdef ambassador", ""},
		{"completion fish", 0, "complete -c ambassador", ""},
		{"completion", 0, "source <\\(ambassador completion bash\\)", ""},
		{"completion tcsh", 2, "", `unknown command "tcsh" for "ambassador completion"; see`},
		{"help completion", 0, "ambassador completion bash", ""},
		{"statsu", 2, "", "unknown command \"statsu\"; did you mean `ambassador status`?"},
		{"entirely-different", 2, "", "unknown command \"entirely-different\"; see"},
		{"why", 2, "", "which connection\\? give the client's own address or port"},
		{"why 1 2", 2, "", `unexpected "2": one connection at a time`},
		{"version extra", 2, "", "see `ambassador version --help`"},
		{"run --nope", 2, "", "unknown flag: --nope; see `ambassador run --help`"},
		{"run -c", 2, "", "flag needs an argument"},
		{"run extra", 2, "", `unexpected "extra": COMMAND comes after --`},
		{"run -c " + good + " --log-level loud", 2, "", `--log-level: "loud" is no level; use debug, info, warn or error`},
		{"run -c " + good + " --log-format xml", 2, "", `--log-format: "xml" is no format; use auto, text or json`},
		{"run -c /absent.yaml", 2, "", "/absent.yaml"},
		{"run -c " + good + " --print-config", 0, "listeners:", ""},
		{"run -c " + good + " -- no-such-program-anywhere", 127, "", "COMMAND no-such-program-anywhere: executable file not found"},
		{"run -c " + good + " -- /absent/program", 127, "", "COMMAND /absent/program: no such file"},
		{"run -c " + good + " -- " + plainFile, 126, "", "COMMAND " + plainFile + ": permission denied"},
		{"run -c " + good + " -- /", 126, "", "COMMAND /: is a directory"},
		{"run -c " + inUse, 1, "", "^ambassador: listener front: listen " + taken + ": the address is in use; "},
		{"run -c " + adminInUse, 1, "", "^ambassador: admin: listen " + taken + ": the address is in use; "},
		{"run -c " + metricsInUse, 1, "", "^ambassador: metrics: listen " + taken + ": the address is in use; "},
		{"run -c " + identity, 2, "", `(?m)ambassador\.yaml:\d+:\d+: identities\.me\.files\.cert: .*absent\.crt: no such file(.*\n)+.*identities\.me\.files\.key: .*absent\.key`},
		{"forward --listen 127.0.0.1:0", 2, "", "--to"},
		{"forward --plain --listen " + taken + " --to 127.0.0.1:1", 1, "", "listener forward: listen " + taken + ": the address is in use"},
		{"forward --plain --listen 127.0.0.1:0 --to 127.0.0.1:1 --print-config", 0, "127.0.0.1:1", ""},
		{"socks5 --listen 127.0.0.1:0", 2, "", `^ambassador: --allow: required: what clients may connect to`},
		{"socks5 --listen 127.0.0.1:0 --allow db.internal", 2, "", `^ambassador: --allow: "db.internal": no port`},
		{"socks5 --listen " + taken + " --allow db.internal:1", 1, "", "listener socks5: listen " + taken + ": the address is in use"},
		{"socks5 --listen 127.0.0.1:0 --allow db.internal:1 --report --print-config", 0, `(?s)direct: \{dynamic: true\}.*port: 1, upstream: direct.*report: "not in --allow"`, ""},
		{"check --explain", 2, "", "flag needs an argument"},
		{"check -c " + good + " --explain dest=a:1", 2, "", "no listener of the file has rules"},
		{"forward --listen 127.0.0.1:0 --to 127.0.0.1:1 --cert /absent.crt --key /absent.key", 2, "", "--cert: .*no such file"},
	} {
		t.Run(c.args, func(t *testing.T) {
			stdout, stderr := cmdtest.NewOutput(), cmdtest.NewOutput()
			code := run(t.Context(), strings.Fields(c.args), strings.NewReader(""), stdout, stderr)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, o := range []struct {
				name string
				have *cmdtest.Output
				want string
			}{{"stdout", stdout, c.stdout}, {"stderr", stderr, c.stderr}} {
				if o.want == "" && o.have.String() != "" || !regexp.MustCompile(o.want).MatchString(o.have.String()) {
					t.Errorf("%s is %q, want %q", o.name, o.have, o.want)
				}
			}
			if c.code != 0 && !strings.HasPrefix(stderr.String(), "ambassador: ") {
				t.Errorf("stderr does not begin with our name: %q", stderr)
			}
		})
	}
}

func TestEveryCommandIsExplained(t *testing.T) {
	for _, c := range everyCommand((&app{World: program.World{Env: cmdtest.EnvOf()}}).rootCommand()) {
		switch {
		case c.Short == "" || c.Example == "":
			t.Errorf("%s: has no description, or no example", c.CommandPath())
		case c.Parent() != nil && c.Parent().Parent() == nil && c.GroupID == "" && c.Name() != "version" && c.Name() != "help" && c.Name() != "completion":
			t.Errorf("%s: belongs to no section of the help", c.CommandPath())
		case !strings.Contains(c.Example, "ambassador"):
			t.Errorf("%s: the example is no command line: %s", c.CommandPath(), c.Example)
		}
	}
}

// Every flag is in the help of its command, and a boolean one has no value there.
func TestFlagsInHelp(t *testing.T) {
	for _, c := range everyCommand((&app{World: program.World{Env: cmdtest.EnvOf()}}).rootCommand()) {
		c.InitDefaultHelpFlag()
		text := c.UsageString()
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			want := "--" + f.Name + `\s`
			if f.Value.Type() == "bool" {
				want = "--" + f.Name + `\s{2}`
			}
			if !f.Hidden && !regexp.MustCompile(want).MatchString(text) {
				t.Errorf("%s: the help does not have %s as it should:\n%s", c.CommandPath(), f.Name, text)
			}
		})
	}
}

func TestVersionOf(t *testing.T) {
	settings := func(pairs ...string) (out []debug.BuildSetting) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, debug.BuildSetting{Key: pairs[i], Value: pairs[i+1]})
		}
		return out
	}
	for _, c := range []struct {
		info debug.BuildInfo
		want string
	}{
		{debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}}, "v1.2.3"},
		{debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: settings("vcs.revision", "0123456789abcdef")}, "0123456789ab"},
		{debug.BuildInfo{Settings: settings("vcs.revision", "0123456789abcdef", "vcs.modified", "true")}, "0123456789ab+changed"},
		{debug.BuildInfo{}, "devel"},
	} {
		if got := versionOf(&c.info); got != c.want {
			t.Errorf("%+v: %q, want %q", c.info, got, c.want)
		}
	}
}

func TestVersionLine(t *testing.T) {
	for _, c := range []struct {
		reply versionReply
		want  string
	}{
		{versionReply{Version: "v1.2.3", Commit: "0123456789abcdef", Date: "2026-11-29T06:31:02Z", Go: "go1.26.8", OS: "linux", Arch: "amd64"},
			"ambassador v1.2.3 (commit 0123456789ab 2026-11-29T06:31:02Z, go1.26.8, linux/amd64)"},
		{versionReply{Version: "v1.2.3", Commit: "0123", Go: "go1.26.8", OS: "linux", Arch: "amd64"}, "ambassador v1.2.3 (commit 0123, go1.26.8, linux/amd64)"},
		{versionReply{Version: "devel", Go: "go1.26.8", OS: "darwin", Arch: "arm64"}, "ambassador devel (go1.26.8, darwin/arm64)"},
	} {
		if got := c.reply.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
