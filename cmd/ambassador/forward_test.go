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
		{"tls", forwardFlags{listenFlags: listenFlags{listen: "127.0.0.1:0"}, to: []string{"h:1"}}, ""},
		{"everything", forwardFlags{listenFlags: listenFlags{listen: "unix:/s", idle: 5e9, socketMode: "0660"}, to: []string{"h:1", "[::1]:2"}, starttls: "postgres", cert: "c", key: "k", ca: "ca", serverName: "n"}, ""},
		{"principals and system", forwardFlags{listenFlags: listenFlags{listen: "127.0.0.1:0"}, to: []string{"unix:/x"}, ca: "system", principals: []string{"any"}}, ""},
		{"plain", forwardFlags{listenFlags: listenFlags{listen: "127.0.0.1:0"}, to: []string{"h:1"}, plain: true}, ""},
		{"a variable is none", forwardFlags{listenFlags: listenFlags{listen: "127.0.0.1:0"}, to: []string{"h:1"}, serverName: "${HOME}"}, ""},
		{"nothing", forwardFlags{}, "--listen: required"},
		{"nothing, in one pass", forwardFlags{}, "--to: required"},
		{"no port", forwardFlags{listenFlags: listenFlags{listen: "127.0.0.1:0"}, to: []string{"h"}, plain: true}, `--to: "h" is no HOST:PORT`},
		{"open", forwardFlags{listenFlags: listenFlags{listen: "0.0.0.0:0"}, to: []string{"h:1"}}, "or set --unsafe-plaintext-listen"},
		{"half a pair", forwardFlags{listenFlags: listenFlags{listen: "127.0.0.1:0"}, to: []string{"h:1"}, cert: "c"}, "--cert: needs --key"},
		{"other half", forwardFlags{listenFlags: listenFlags{listen: "127.0.0.1:0"}, to: []string{"h:1"}, key: "k"}, "--key: needs --cert"},
		{"contradiction", forwardFlags{listenFlags: listenFlags{listen: "127.0.0.1:0"}, to: []string{"h:1"}, plain: true, ca: "c"}, "--ca: has no meaning with --plain"},
		{"protocol", forwardFlags{listenFlags: listenFlags{listen: "127.0.0.1:0"}, to: []string{"h:1"}, starttls: "gopher"}, `--starttls: "gopher" is none of`},
		{"unix without a name", forwardFlags{listenFlags: listenFlags{listen: "127.0.0.1:0"}, to: []string{"unix:/x"}}, "--to: a unix socket has no host that a certificate could be for; set --server-name or --principal"},
		{"principal", forwardFlags{listenFlags: listenFlags{listen: "127.0.0.1:0"}, to: []string{"h:1"}, principals: []string{"x"}}, "--principal: "},
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
