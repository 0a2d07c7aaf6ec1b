package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// modes are what the programs do: TCP to TCP; TCP to TLS with a client certificate; the
// reverse; SOCKS5 to TCP.
var modes = []string{"plain", "mtls", "term", "socks"}

// program is a program under test.
type program struct {
	name     string
	path     string
	commands map[string][]string // by mode; a mode that it lacks is left out
	// configs are files to write, by mode. In commands and configs {listen}, {target},
	// {dir} and so on stand for the values of the run.
	configs map[string]string
}

// choose returns the programs to measure, ours first, and says which are not there.
func choose(o options, out io.Writer) ([]program, error) {
	all := []program{ambassador("ambassador", o.binary)}
	if o.against != "" {
		all = append(all, ambassador("older", o.against))
	} else {
		all = append(all, haproxy, nginx, microsocks)
	}
	var found []program
	for i, p := range all {
		at, err := find(p.path)
		switch {
		case err == nil:
			p.path = at
			found = append(found, p)
		case i == 0 || o.against != "":
			return nil, err
		default:
			fmt.Fprintf(out, "%s is not installed, and left out\n", p.name)
		}
	}
	return found, nil
}

// find looks for a program where PATH says, and where Debian has those of root.
func find(name string) (string, error) {
	at, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil && !strings.Contains(name, "/") {
			at, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	if err != nil {
		return "", err
	}
	return filepath.Abs(at)
}

// ambassador is an ambassador in the file at path.
func ambassador(name, path string) program {
	run := []string{"run", "-c", "{config}"}
	return program{name, path, map[string][]string{
		"plain": {"forward", "--admin=", "--plain", "--listen={listen}", "--to={target}"},
		"mtls": {"forward", "--admin=", "--listen={listen}", "--to={target}", "--cert={dir}/client.pem", "--key={dir}/client.pem",
			"--ca={dir}/ca.pem", "--server-name=" + serverName},
		"term": run, "socks": run,
	}, map[string]string{
		"term": `admin: {listen: ""}
log: {level: error}
identities:
  server:
    files: {cert: "{dir}/server.pem", key: "{dir}/server.pem", ca: "{dir}/ca.pem"}
upstreams:
  target: {endpoints: ["{target}"], health: {interval: 0s}}
listeners:
  term: {listen: "{listen}", tls: {identity: server, client: required, principals: [any]}, upstream: target}
`,
		"socks": `admin: {listen: ""}
log: {level: error}
upstreams:
  anywhere: {dynamic: true}
listeners:
  egress:
    listen: "{listen}"
    socks5: {}
    rules: [{ip: [127.0.0.0/8], upstream: anywhere}]
`,
	}}
}

const haproxyDefaults = `global
	nbthread 2
	tune.bufsize 65536
	maxconn 9000
	maxpipes 400
defaults
	mode tcp
	option splice-auto
	timeout connect 5s
	timeout client 1h
	timeout server 1h
`

var haproxy = program{"haproxy", "haproxy", inModes("-db", "-f", "{config}"), map[string]string{
	"plain": haproxyDefaults + `listen bench
	bind {listen} backlog 4096
	server target {target}
`,
	"mtls": haproxyDefaults + `listen bench
	bind {listen} backlog 4096
	server target {target} ssl verify required ca-file {dir}/ca.pem crt {dir}/client.pem sni str(` + serverName + `) verifyhost ` + serverName + ` ssl-min-ver TLSv1.3 ciphersuites TLS_AES_128_GCM_SHA256
`,
	"term": haproxyDefaults + `listen bench
	bind {listen} backlog 4096 ssl crt {dir}/server.pem ca-file {dir}/ca.pem verify required ssl-min-ver TLSv1.3 ciphersuites TLS_AES_128_GCM_SHA256 curves X25519
	server target {target}
`,
}}

var nginx = program{"nginx", "nginx", inModes("-c", "{config}", "-e", "stderr"), map[string]string{
	"plain": nginxConfig("", ""),
	"mtls": nginxConfig("", `
		proxy_ssl on;
		proxy_ssl_certificate {dir}/client.pem;
		proxy_ssl_certificate_key {dir}/client.pem;
		proxy_ssl_trusted_certificate {dir}/ca.pem;
		proxy_ssl_verify on;
		proxy_ssl_name `+serverName+`;
		proxy_ssl_server_name on;
		proxy_ssl_protocols TLSv1.3;
		proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
		proxy_ssl_conf_command Curves X25519;`),
	"term": nginxConfig("ssl", `
		ssl_certificate {dir}/server.pem;
		ssl_certificate_key {dir}/server.pem;
		ssl_client_certificate {dir}/ca.pem;
		ssl_verify_client on;
		ssl_protocols TLSv1.3;
		ssl_ecdh_curve X25519;
		ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;`),
}}

func nginxConfig(listen, more string) string {
	load := ""
	if _, err := os.Stat(nginxStream); err == nil {
		load = "load_module " + nginxStream + ";"
	}
	return load + `
daemon off;
pid {dir}/nginx.pid;
error_log stderr error;
worker_processes 2;
worker_rlimit_nofile 20000;
events { worker_connections 9000; }
stream {
	proxy_timeout 1h;
	proxy_buffer_size 64k;
	server {
		listen {listen} ` + listen + ` backlog=4096 reuseport;
		proxy_pass {target};` + more + `
	}
}
`
}

// nginxStream is nginx's stream module on Debian; elsewhere it is part of nginx.
const nginxStream = "/usr/lib/nginx/modules/ngx_stream_module.so"

var microsocks = program{"microsocks", "microsocks", map[string][]string{"socks": {"-i", "{host}", "-p", "{port}"}}, nil}

// inModes is a command that is the same in all modes but SOCKS5.
func inModes(args ...string) map[string][]string {
	return map[string][]string{"plain": args, "mtls": args, "term": args}
}

// running is a program that runs in a mode.
type running struct {
	name  string
	route route
	cmd   *exec.Cmd
	done  chan struct{} // closed when it has ended
	log   string
}

// start starts the program, and waits until a connection to the target works.
func (p program) start(mode, dir string, t *target, c certs) (*running, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	listen, err := freeAddress()
	if err != nil {
		return nil, err
	}
	to := t.plain.Addr().String()
	r := &running{name: p.name, route: route{addr: listen}, done: make(chan struct{}), log: filepath.Join(dir, "log")}
	switch mode {
	case "mtls":
		to = t.tls.Addr().String()
	case "term":
		r.route.tls = c.client()
	case "socks":
		r.route.socks = to
	}
	host, port, _ := net.SplitHostPort(listen)
	config := filepath.Join(dir, "config")
	values := strings.NewReplacer("{listen}", listen, "{host}", host, "{port}", port, "{target}", to, "{dir}", c.dir, "{config}", config)
	if err := os.WriteFile(config, []byte(values.Replace(p.configs[mode])), 0o600); err != nil {
		return nil, err
	}
	var args []string
	for _, a := range p.commands[mode] {
		args = append(args, values.Replace(a))
	}
	if err := r.run(p.path, args); err != nil {
		return nil, err
	}
	return r, r.await()
}

// run starts the process. Its key exchange is X25519 alone, as that of the others.
func (r *running) run(path string, args []string) error {
	log, err := os.Create(r.log)
	if err != nil {
		return err
	}
	defer log.Close()
	r.cmd = exec.Command(path, args...)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	r.cmd.Env = append(os.Environ(), "GODEBUG=tlsmlkem=0,tlssecpmlkem=0")
	if err := r.cmd.Start(); err != nil {
		return err
	}
	go func() {
		r.cmd.Wait()
		close(r.done)
	}()
	return nil
}

// await waits until a byte comes back from the target, and stops the program if none
// does.
func (r *running) await() error {
	var err error
	for end := time.Now().Add(grace); time.Now().Before(end); {
		var conn net.Conn
		if conn, err = r.route.open(wantEcho, end); err == nil {
			conn.Close()
			return nil
		}
		select {
		case <-r.done:
			return fmt.Errorf("it has ended; its log ends with %q", r.logTail())
		case <-time.After(20 * time.Millisecond):
		}
	}
	r.stop()
	return fmt.Errorf("it forwards nothing: %w; its log ends with %q", err, r.logTail())
}

// stop ends the process.
func (r *running) stop() {
	r.cmd.Process.Signal(os.Interrupt)
	select {
	case <-r.done:
	case <-time.After(2 * time.Second):
		r.cmd.Process.Kill()
		<-r.done
	}
}

// logTail is the end of what the program has printed.
func (r *running) logTail() string {
	text, err := os.ReadFile(r.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-400):])
}

// freeAddress returns a free address. Its port is below those of outgoing connections,
// so that none takes it before the program does.
func freeAddress() (string, error) {
	for port := 20000 + os.Getpid()%8000; port < 32000; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			l.Close()
			return l.Addr().String(), nil
		}
	}
	return "", errors.New("no port between 20000 and 32000 is free")
}
