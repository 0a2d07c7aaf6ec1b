package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/process"
	"ambassador/cmd/ambassador/internal/program"
)

// inTempDir lets the demo create its folder in one of the test's own. left returns what
// remains of it.
func inTempDir(t *testing.T) (left func() []string) {
	t.Helper()
	dir := cmdtest.ShortDir(t)
	t.Setenv("TMPDIR", dir)
	t.Setenv("RUNTIME_DIRECTORY", cmdtest.ShortDir(t))
	return func() []string {
		found, _ := filepath.Glob(filepath.Join(dir, "ambassador-demo-*"))
		return found
	}
}

func TestDemoOnce(t *testing.T) {
	left := inTempDir(t)
	out, log := cmdtest.NewOutput(), cmdtest.NewOutput()
	if code := run(t.Context(), []string{"demo", "--once"}, strings.NewReader(""), out, log); code != 0 {
		t.Fatalf("exit code %d:\n%s%s", code, out, log)
	}
	for _, want := range []string{
		`sent "hi", was answered "hello demo-client: hi"`,
		`without a certificate, straight to the service: refused \(remote error: tls: certificate required\)`,
	} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("standard output has no %s:\n%s", want, out)
		}
	}
	if want := `level=INFO msg=session .*listener=forward .*upstream=forward .*stage=relay reason=closed`; !regexp.MustCompile(want).MatchString(log.String()) {
		t.Errorf("the log has no readable record:\n%s", log)
	}
	if got := left(); len(got) > 0 {
		t.Errorf("it left %v", got)
	}
}

func TestDemoOnceFails(t *testing.T) {
	left := inTempDir(t)
	for name, c := range map[string]struct {
		spoil func(*demo)
		want  string
	}{
		"the service takes anybody": {func(d *demo) { d.tls.ClientAuth = tls.VerifyClientCertIfGiven }, "not refused"},
		"the service is gone":       {func(d *demo) { d.service.Close() }, "through the ambassador"},
		"another CA":                {func(d *demo) { os.WriteFile(filepath.Join(d.folder, "ca.crt"), otherCA(t), 0o600) }, "through the ambassador"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := newDemo(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer d.close()
			c.spoil(d)
			f, err := d.configuration("127.0.0.1:0", io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			a := &app{World: program.World{Stdout: cmdtest.NewOutput(), Stderr: cmdtest.NewOutput(), Env: cmdtest.EnvOf()}}
			if err := d.runOnce(t.Context(), a, f); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want an error with %q", err, c.want)
			}
		})
	}
	if got := left(); len(got) > 0 {
		t.Errorf("it left %v", got)
	}
}

func otherCA(t *testing.T) []byte { return cmdtest.NewPairs(t).CA.RootPEM() }

func TestDemo(t *testing.T) {
	left := inTempDir(t)
	d, err := newDemo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if info, err := os.Stat(d.folder); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder with the key: %v, %v; want mode 0700", info.Mode(), err)
	}
	socket := filepath.Join(cmdtest.ShortDir(t), "s")
	f, err := d.configuration("unix:"+socket, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	out := cmdtest.NewOutput()
	p, err := process.Start(t.Context(), program.World{Stdout: out, Stderr: cmdtest.NewOutput(), Env: cmdtest.EnvOf("RUNTIME_DIRECTORY=" + cmdtest.ShortDir(t))}, f, process.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d.explain(out, p.Listening()[0].Addr)
	for _, want := range []string{"echo hi \\| nc -N -U " + socket + "\n", "ambassador why PORT", "A service at 127.0.0.1:", "Ctrl-C"} {
		out.Await(t, want)
	}
	c := cmdtest.DialPrinted(t, out.Await(t, `(?m)^listening forward (\S+)$`)[1])
	cmdtest.Says(t, c, "one", "hello demo-client: one")
	cmdtest.Says(t, c, "two", "hello demo-client: two")
	p.Quit()
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	p.Close()
	d.close()
	if got := left(); len(got) > 0 {
		t.Errorf("it left %v", got)
	}
}

func TestNetcatLine(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1:4000": "nc -N 127.0.0.1 4000",
		"[::1]:4000":     "nc -N ::1 4000",
		"unix:/run/s":    "nc -N -U /run/s",
	} {
		if got := netcatLine(addr); got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
}

// A client that has no TLS reaches a service that accepts only certificates, by the
// name in its request or by the name in the configuration.
func TestMTLSByRule(t *testing.T) {
	d, err := newDemo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	out, log := runFile(t, cmdtest.WriteConfig(t, fmt.Sprintf(`
identities: {me: {files: {cert: %[1]s/client.crt, key: %[1]s/client.key, ca: %[1]s/ca.crt}}}
upstreams:
  asked: {dynamic: true, tls: {identity: me}}
  fixed: {dynamic: true, tls: {identity: me, server_name: localhost}}
  other: {dynamic: true, tls: {identity: me, server_name: other.internal}}
listeners:
  asked: {listen: "127.0.0.1:0", socks5: {}, rules: [{host: localhost, upstream: asked}]}
  fixed: {listen: "127.0.0.1:0", socks5: {}, rules: [{ip: 127.0.0.0/8, upstream: fixed}]}
  other: {listen: "127.0.0.1:0", socks5: {}, rules: [{host: localhost, upstream: other}]}
`, d.folder)))
	address := d.service.Addr().String()
	for _, tt := range []struct {
		listener, dest string
		want           byte
	}{{"asked", cmdtest.Localhost(address), 0}, {"fixed", address, 0}, {"other", cmdtest.Localhost(address), 1}} {
		c, code := cmdtest.AskSOCKS5(t, out.Await(t, `(?m)^listening `+tt.listener+` (\S+)$`)[1], "", tt.dest)
		if code != tt.want {
			t.Errorf("%s by %s: reply %d, want %d:\n%s", tt.dest, tt.listener, code, tt.want, log)
		}
		if code == 0 {
			cmdtest.Says(t, c, "hi", "hello demo-client: hi")
		}
	}
}
