package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/config"
)

func TestMistakesInUsersFiles(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "a.yaml")
	cmdtest.WriteFile(t, path, cmdtest.Ruled("socks5: {users_file: users}", cmdtest.AllowAll))
	for _, tt := range []struct {
		users string
		want  []string
	}{
		{"", []string{"it has no users, so that nobody could come in"}},
		{"alice:secret\nbob\n", []string{"line 1: the hash of \"alice\"", "line 2: there is no colon"}},
	} {
		cmdtest.WriteFile(t, filepath.Join(folder, "users"), tt.users)
		_, errs, code := explained(t, "-c", path)
		for _, want := range tt.want {
			if code != 2 || !strings.Contains(errs, path+":4:26: listeners.l.socks5.users_file: "+filepath.Join(folder, "users")+": "+want) {
				t.Errorf("exit code %d, want 2 and %q:\n%s", code, want, errs)
			}
		}
	}
	if err := os.Remove(filepath.Join(folder, "users")); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := explained(t, "-c", path); code != 2 || !strings.Contains(errs, "listeners.l.socks5.users_file: "+filepath.Join(folder, "users")+": no such file") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

// A link to a regular file is read like the file; Kubernetes mounts files like that.
func TestLinksToFilesAreRead(t *testing.T) {
	folder := t.TempDir()
	for _, dir := range []string{"..1", "..2"} {
		if err := os.Mkdir(filepath.Join(folder, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cmdtest.WriteFile(t, filepath.Join(folder, "..1", "ambassador.yaml"), cmdtest.Ruled("socks5: {users_file: users}", cmdtest.AllowAll))
	cmdtest.WriteFile(t, filepath.Join(folder, "..1", "users"), cmdtest.Htpasswd(t, "alice", "wonderland"))
	for name, to := range map[string]string{"..data": "..1", "ambassador.yaml": "..data/ambassador.yaml", "users": "..data/users"} {
		if err := os.Symlink(to, filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	if out, errs, code := explained(t, "-c", filepath.Join(folder, "ambassador.yaml")); code != 0 {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
}

func TestAConfigurationFromAPipe(t *testing.T) {
	s := &config.Source{Path: cmdtest.Feed(t, cmdtest.Good+"    tls: {ca: ca.crt}")}
	f, err := s.Load(cmdtest.Env)
	if err != nil {
		t.Fatal(err)
	}
	if wd, err := os.Getwd(); err != nil || f.Upstreams[0].TLS.CA != filepath.Join(wd, "ca.crt") {
		t.Errorf("a relative path is %s, want it in %s, %v", f.Upstreams[0].TLS.CA, wd, err)
	}
	if _, err := s.Load(cmdtest.Env); err == nil || !strings.Contains(err.Error(), "a pipe cannot be read again; to be able to reload, start with -c and a regular file") {
		t.Errorf("read again: %v", err)
	}
	if out, errs, code := explained(t, "-c", cmdtest.Feed(t, cmdtest.Good)); code != 0 || !strings.Contains(out, "ok (1 listener") {
		t.Errorf("check: exit code %d\n%s%s", code, out, errs)
	}
	out, errs := cmdtest.NewOutput(), cmdtest.NewOutput()
	if code := run(t.Context(), []string{"run", "--print-config", "-c", cmdtest.Feed(t, cmdtest.Good)}, strings.NewReader(""), out, errs); code != 0 || out.String() != cmdtest.Good {
		t.Errorf("run: exit code %d\n%s%s", code, out, errs)
	}
	if code := run(t.Context(), []string{"run", "--watch", "-c", cmdtest.Feed(t, cmdtest.Good)}, strings.NewReader(""), out, errs); code != 2 || !strings.Contains(errs.String(), "is a pipe, which cannot be read again") {
		t.Errorf("--watch: exit code %d\n%s", code, errs)
	}
}

// Control characters in keys, values and file names are made visible.
func TestCheckPrintsWhatCanBeSeen(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "a\x1b[31m\u202e\nmsg=c")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "a.yaml")
	const esc = `\e[31m\n\u202emsg=c\x7f`
	for name, text := range map[string]string{
		"good":       cmdtest.Good,
		"a key":      cmdtest.Good + `"a` + esc + `": 1`,
		"a value":    cmdtest.Good + `log: {level: "a` + esc + `"}`,
		"a name":     cmdtest.Good + `identities: {"a` + esc + `": {}}`,
		"a listener": strings.Replace(cmdtest.Good, `"127.0.0.1:1"`, `"a`+esc+`"`, 1),
		"a path":     cmdtest.Good + `admin: {token_file: "a` + esc + `"}`,
		"a warning":  strings.Replace(cmdtest.Ruled(`socks5: {users_file: "users`+esc+`"}`, cmdtest.AllowAll), "listen: 127.0.0.1:1", `listen: "unix:a`+esc+`"`, 1),
		"a rule":     cmdtest.Ruled("socks5: {}", `{name: "a`+esc+`", upstream: net}`),
		"a deny":     cmdtest.Ruled("socks5: {}", `{deny: "a`+esc+`", name: x}`, `{deny: x, report: "`+esc+`"}`),
	} {
		cmdtest.WriteFile(t, path, text)
		for _, args := range [][]string{{"-c", path}, {"-c", path, "--json"}, {"-c", path, "--explain", "dest=a\x1b\u202e:1"}} {
			out, errs, _ := explained(t, args...)
			if out+errs == "" {
				t.Errorf("%s: %q print nothing", name, args)
			}
			cmdtest.MustBeVisible(t, name, out+errs)
		}
	}
}

func TestErrorsCanBeSeen(t *testing.T) {
	errs := cmdtest.NewOutput()
	code := run(t.Context(), []string{"status", "--admin", "unix:/nowhere\x1b[31m\u202e\x9b"}, strings.NewReader(""), cmdtest.NewOutput(), errs)
	if code == 0 {
		t.Error("an admin socket that is not there answers")
	}
	cmdtest.MustBeVisible(t, "the error", errs.String())
}

// Neither --print-config nor the admin API shows a secret, and both show the same text.
func TestSecretsOfARunningProcess(t *testing.T) {
	path := cmdtest.WriteConfig(t, cmdtest.Secretive)
	printed, _ := runFile(t, path)
	shown, status, err := cmdtest.AskPrinted(printed.Await(t, `(?m)^listening admin (\S+)$`)[1], "GET", "/v1/config")
	out, errs := cmdtest.NewOutput(), cmdtest.NewOutput()
	code := run(t.Context(), []string{"run", "--print-config", "-c", path}, strings.NewReader(""), out, errs)
	if err != nil || status != 200 || code != 0 {
		t.Fatalf("%v, status %d, exit code %d\n%s", err, status, code, errs)
	}
	if shown != out.String() || !strings.Contains(shown, "send: '***'") || strings.Contains(shown, "hunter2") {
		t.Errorf("/v1/config:\n%s\n--print-config:\n%s", shown, out)
	}
}
