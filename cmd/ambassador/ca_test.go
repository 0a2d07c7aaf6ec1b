package main

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/cmdtest"
)

// startCA runs `ca` until stop or the end of the test, and returns everything that it
// printed.
func startCA(t *testing.T, args ...string) (printed string, stop func() int) {
	t.Helper()
	printed, _, stop = startCAWithLog(t, args...)
	return printed, stop
}

// startCAWithLog is startCA that also returns the log.
func startCAWithLog(t *testing.T, args ...string) (printed string, log *cmdtest.Output, stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out := cmdtest.NewOutput()
	log = cmdtest.NewOutput()
	code, done := 0, make(chan struct{})
	go func() { // stop waits for it
		defer close(done)
		code = run(ctx, append([]string{"ca", "--listen", "127.0.0.1:0"}, args...), strings.NewReader(""), out, log)
	}()
	stop = func() int {
		cancel()
		<-done
		return code
	}
	t.Cleanup(func() { stop() })
	ended := make(chan struct{})
	go func() { // ends with the CA
		defer close(ended)
		<-done
	}()
	for start := time.Now(); ; { // the last line shows that the output is complete
		if strings.Contains(out.String(), "storage: me-identity\n") {
			return out.String(), log, stop
		}
		select {
		case <-ended:
			t.Fatalf("it has ended with code %d:\n%s%s", code, out, log)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Since(start) > cmdtest.Patience {
			t.Fatalf("it says only:\n%s%s", out, log)
		}
	}
}

// pasted is the block that `ca` prints; the rest of a file can follow it.
func pasted(t *testing.T, printed string) string {
	t.Helper()
	_, block, ok := strings.Cut(printed, "\nidentities:\n")
	if !ok {
		t.Fatalf("no block to paste:\n%s", printed)
	}
	return "identities:\n" + block
}

// What `ca` prints can be pasted, and an ambassador gets its certificate with it.
func TestCAPrintsWhatWorks(t *testing.T) {
	dir := cmdtest.ShortDir(t)
	t.Setenv("TMPDIR", dir)
	printed, stop := startCA(t)
	path := cmdtest.WriteConfig(t, pasted(t, printed)+`
upstreams: {u: {endpoints: ["127.0.0.1:1"], required: false, tls: {identity: me}}}
listeners: {front: {listen: "127.0.0.1:0", upstream: u}}
`)
	_, log := runFile(t, path)
	log.Await(t, `"msg":"identity obtained","identity":"me","generation":1,"names":\["dns:me.internal"\]`)
	if _, err := os.Stat(filepath.Join(filepath.Dir(path), "me-identity", "identity.pem")); err != nil {
		t.Error(err)
	}
	if code := stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "ambassador-ca-*")); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
}

// With --storage the authority stays the same after a restart, and only accepts the
// same password.
func TestCAStorage(t *testing.T) {
	dir := t.TempDir()
	password, wrong := filepath.Join(dir, "pw"), filepath.Join(dir, "wrong")
	cmdtest.WriteFile(t, password, "correct horse\n")
	cmdtest.WriteFile(t, wrong, "wrong\n")
	fingerprint := regexp.MustCompile(`(?m)^fingerprint +([0-9a-f]{64})$`)
	for _, args := range [][]string{{"--storage", filepath.Join(dir, "plain")}, {"--storage", filepath.Join(dir, "encrypted"), "--password-file", password}} {
		first, stop := startCA(t, args...)
		stop()
		second, stop := startCA(t, args...)
		stop()
		if a, b := fingerprint.FindString(first), fingerprint.FindString(second); a == "" || a != b {
			t.Errorf("%v: fingerprints %q and %q", args, a, b)
		}
		key, err := os.ReadFile(filepath.Join(args[1], "intermediate.key"))
		if err != nil || strings.Contains(string(key), "ENCRYPTED") != (len(args) > 2) {
			t.Errorf("%v: the key at rest: %.40q, %v", args, key, err)
		}
		files, _ := os.ReadDir(args[1])
		for _, f := range files {
			if info, err := f.Info(); err != nil || !strings.HasSuffix(f.Name(), ".crt") && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%v: %s has mode %v, %v", args, f.Name(), info.Mode(), err)
			}
		}
	}
	for want, args := range map[string][]string{
		"the password does not open the key":   {"--storage", filepath.Join(dir, "encrypted"), "--password-file", wrong},
		"the key is encrypted; give":           {"--storage", filepath.Join(dir, "encrypted")},
		"the key was stored without":           {"--storage", filepath.Join(dir, "plain"), "--password-file", password},
		"no such file":                         {"--password-file", filepath.Join(dir, "absent")},
		`--listen: "nonsense" is no HOST:PORT`: {"--listen", "nonsense"},
	} {
		log := cmdtest.NewOutput()
		if code := run(t.Context(), append([]string{"ca", "--listen", "127.0.0.1:0"}, args...), strings.NewReader(""), cmdtest.NewOutput(), log); code == 0 || !strings.Contains(log.String(), want) {
			t.Errorf("%v: exit code %d, %s; want one with %q", args, code, log, want)
		}
	}
}

// A short password is allowed on loopback only. Files in a folder that others can write
// to are not used.
func TestCAWarns(t *testing.T) {
	dir := t.TempDir()
	short, long := filepath.Join(dir, "short"), filepath.Join(dir, "long")
	cmdtest.WriteFile(t, short, "elevenbytes\n")
	cmdtest.WriteFile(t, long, "twelve bytes\n")
	for _, tt := range []struct {
		address, password string
		want              bool
	}{
		{"127.0.0.1:9000", short, false},
		{"[::1]:9000", short, false},
		{"10.0.0.7:9000", long, false},
		{"10.0.0.7:9000", short, true},
		{"[::]:9000", short, true},
	} {
		password, err := certs.ReadSecret(tt.password)
		if err != nil {
			t.Fatal(err)
		}
		log := cmdtest.NewOutput()
		f := &caFiles{password: password, passwordFile: tt.password}
		f.warn(slog.New(slog.NewJSONHandler(log, nil)), net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tt.address)))
		if text := log.String(); strings.Contains(text, `"msg":"short password: every client of the address`) != tt.want || !tt.want && text != "" {
			t.Errorf("%s, %s: log %s; want a warning: %v", tt.address, tt.password, text, tt.want)
		}
	}
	if err := os.Chmod(short, 0o644); err != nil {
		t.Fatal(err)
	}
	_, log, stop := startCAWithLog(t, "--password-file", short)
	stop()
	if text := log.String(); !strings.Contains(text, "every user of this host may read this secret") || strings.Contains(text, "short password") {
		t.Errorf("log %s", text)
	}
	storage := filepath.Join(dir, "storage")
	for _, prepare := range []func() error{
		func() error { return os.Mkdir(storage, 0o700) },
		func() error { return os.WriteFile(filepath.Join(storage, passwordName), []byte("known"), 0o644) },
	} {
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
	}
	refuses := func(want string) {
		t.Helper()
		log := cmdtest.NewOutput()
		if code := run(t.Context(), []string{"ca", "--listen", "127.0.0.1:0", "--storage", storage}, strings.NewReader(""), cmdtest.NewOutput(), log); code != 2 || !strings.Contains(log.String(), want) {
			t.Errorf("exit code %d, %s; want one with %q", code, log, want)
		}
	}
	refuses("others may read this secret")
	if err := os.Chmod(storage, 0o777); err != nil {
		t.Fatal(err)
	}
	refuses("others may write it (mode 0777)")
}
