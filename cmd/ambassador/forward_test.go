package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/config"
)

// TestWhatForwardDoes runs `forward` from start to end. A cancelled context stands in
// for SIGTERM.
func TestWhatForwardDoes(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", cmdtest.ShortDir(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, log, code := cmdtest.NewOutput(), cmdtest.NewOutput(), make(chan int)
	go func() { // the receive below waits for it
		code <- run(ctx, []string{"forward", "--plain", "--admin", "", "--log-format", "text", "--listen", "127.0.0.1:0", "--to", cmdtest.NamedEcho(t, "one")}, strings.NewReader(""), out, log)
	}()
	conn := cmdtest.DialPrinted(t, out.Await(t, `listening forward (\S+)\n`)[1])
	cmdtest.Says(t, conn, "hello", "one: hello")
	conn.Close()
	log.Await(t, `level=INFO msg=session .*listener=forward .*reason=closed`)
	cancel()
	if got := <-code; got != 0 {
		t.Errorf("exit code %d:\n%s", got, log)
	}
	if strings.Contains(out.String(), "listening admin") {
		t.Errorf("--admin \"\" does not turn it off:\n%s", out)
	}
}

func TestForwardFlags(t *testing.T) {
	for _, tt := range []struct {
		name string
		ff   forwardFlags
		want string // empty: no error
	}{
		{"tls", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}}, ""},
		{"everything", forwardFlags{listenFlags: listenFlags{listen: []string{"unix:/s"}, idle: 5e9, socketMode: "0660"}, to: []string{"h:1", "[::1]:2"}, starttls: "postgres", cert: "c", key: "k", ca: "ca", serverName: "n", connectTimeout: 30e9, attemptTimeout: 20e9}, ""},
		{"PKCS #12 and versions", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, pkcs12: "p", passwordFile: "pw", ca: "ca", alpn: []string{"h2", "http/1.1"}, minVersion: "1.3"}, ""},
		{"a password for the roots", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, passwordFile: "pw", ca: "ca"}, ""},
		{"a password for nothing", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, passwordFile: "pw", ca: "system"}, "--password-file: there is nothing that it could open"},
		{"two identities", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, pkcs12: "p", cert: "c", key: "k"}, "--pkcs12: it has certificate and key in one file; remove it, or --cert and --key"},
		{"a version", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, minVersion: "1.1"}, "--min-version: 1.1 is broken; use 1.2; lower ones need a configuration file"},
		{"files, in flags", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, ca: "../../certs/files/testdata/java.p12", minVersion: "1.1"},
			"java.p12: it has a password; give that in --password-file, or convert it to PEM"},
		{"no version", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, minVersion: "3"}, `--min-version: "3" is none of 1.0, 1.1, 1.2, 1.3`},
		{"a version of nothing", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, plain: true, minVersion: "1.3"}, "--min-version: has no meaning with --plain"},
		{"principals and system", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"unix:/x"}, ca: "system", principals: []string{"any"}}, ""},
		{"plain", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, plain: true}, ""},
		{"a variable is none", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, serverName: "${HOME}"}, `--server-name: host "${HOME}": `},
		{"nothing", forwardFlags{}, "--listen: required"},
		{"nothing, in one pass", forwardFlags{}, "--to: required"},
		{"no port", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h"}, plain: true}, `--to: "h" is no HOST:PORT`},
		{"open", forwardFlags{listenFlags: listenFlags{listen: []string{"0.0.0.0:0"}}, to: []string{"h:1"}}, "or set --unsafe-plaintext-listen"},
		{"half a pair", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, cert: "c"}, "--cert: needs --key"},
		{"other half", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, key: "k"}, "--key: needs --cert"},
		{"contradiction", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, plain: true, ca: "c"}, "--ca: has no meaning with --plain"},
		{"protocol", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, starttls: "gopher"}, `--starttls: "gopher" is none of`},
		{"no such protocol", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:21"}, starttls: "ftp"}, "--starttls: FTP over TLS (AUTH TLS) is not supported, because"},
		{"an attempt longer than all", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, attemptTimeout: 20e9}, "--attempt-timeout: 20s is longer than connect.timeout (10s)"},
		{"no time", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, connectTimeout: -1}, "--connect-timeout: -1ns is too short"},
		{"unix without a name", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"unix:/x"}}, "--to: a unix socket has no host that a certificate could be for; set --server-name or --principal"},
		{"principal", forwardFlags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, to: []string{"h:1"}, principals: []string{"x"}}, "--principal: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := forwardFile(&tt.ff)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "listeners.forward") {
					t.Errorf("error:\n%v\nwant one with\n%s", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			roundTrip(t, f)
			if tls := f.Upstreams[0].TLS; (tls == nil) != tt.ff.plain || tls != nil && tls.ServerName != tt.ff.serverName {
				t.Errorf("tls: %+v", tls)
			}
		})
	}
}

// roundTrip prints a configuration, loads it, and expects the same configuration.
func roundTrip(t *testing.T, f *config.File) {
	t.Helper()
	var b bytes.Buffer
	if err := f.PrintYAML(&b); err != nil {
		t.Fatal(err)
	}
	again, err := config.Parse("again.yaml", "/", b.Bytes(), cmdtest.Env)
	if err != nil {
		t.Fatalf("printed, it does not load: %v\n%s", err, b.String())
	}
	if diff := cmp.Diff(f, again, cmpopts.IgnoreUnexported(config.File{})); diff != "" {
		t.Errorf("printed and loaded, it differs: %s", diff)
	}
}
