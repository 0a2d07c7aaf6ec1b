package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

// checked returns the output of `check` for a configuration, and its exit code.
func checked(t *testing.T, text string, args ...string) (out string, code int) {
	t.Helper()
	stdout, stderr := cmdtest.NewOutput(), cmdtest.NewOutput()
	code = run(t.Context(), append([]string{"check", "-c", cmdtest.WriteConfig(t, text)}, args...), strings.NewReader(""), stdout, stderr)
	return stdout.String() + stderr.String(), code
}

// exposing is a configuration with all kinds of files; the files are in folder.
func exposing(t *testing.T) (text, folder string) {
	t.Helper()
	p := cmdtest.NewPairs(t)
	p.Issue("a")
	cmdtest.WriteFile(t, filepath.Join(p.Folder, "pw"), "secret\n")
	cmdtest.WriteFile(t, filepath.Join(p.Folder, "token"), "secret\n")
	cmdtest.WriteFile(t, filepath.Join(p.Folder, "probe"), "secret\n")
	cmdtest.WriteFile(t, filepath.Join(p.Folder, "ca.crt"), string(p.CA.RootPEM()))
	cmdtest.WriteFile(t, filepath.Join(p.Folder, "admin"), strings.Repeat("x", 16)+"\n")
	cmdtest.WriteFile(t, filepath.Join(p.Folder, "users"), cmdtest.Htpasswd(t, "alice", "wonderland"))
	return strings.ReplaceAll(`
identities:
  a: {files: {cert: DIR/a.crt, key: DIR/a.key, ca: DIR/ca.crt, password_file: DIR/pw}}
  s: {step: {url: "https://127.0.0.1:1", fingerprint: `+strings.Repeat("0", 64)+`, names: [a], token_file: DIR/token, storage: DIR/storage}}
upstreams:
  u: {endpoints: ["127.0.0.1:1"], starttls: mysql, required: false, tls: {identity: a}, health: {user: u, password_file: DIR/probe}}
listeners: {front: {listen: "127.0.0.1:0", upstream: u, http_connect: {users_file: DIR/users}}}
admin: {token_file: DIR/admin}
`, "DIR", p.Folder), p.Folder
}

// A secret that every user can read is a warning of `check` and of the log. A file that
// every user can write is an error.
func TestCheckOfFileModes(t *testing.T) {
	text, folder := exposing(t)
	at := func(name string) string { return filepath.Join(folder, name) }
	for _, tt := range []struct {
		file string
		mode fs.FileMode
		want string // empty: nothing
		code int
	}{
		{"a.key", 0o600, "", 0},
		{"a.key", 0o640, "", 0},
		{"a.key", 0o644, ": identities.a.files.key: " + at("a.key") + ": every user of this host may read this secret (mode 0644); chmod o-r it", 0},
		{"pw", 0o644, ": identities.a.files.password_file: ", 0},
		{"token", 0o604, ": identities.s.step.token_file: ", 0},
		{"probe", 0o644, ": upstreams.u.health.password_file: ", 0},
		{"admin", 0o644, ": admin.token_file: ", 0},
		{"users", 0o644, ": listeners.front.http_connect.users_file: ", 0},
		{"a.crt", 0o644, "", 0},
		{"ca.crt", 0o644, "", 0},
		{"a.key", 0o602, "identities.a.files.key: " + at("a.key") + ": every user of this host may write it (mode 0602); chmod o-w it", 2},
		{"pw", 0o666, "identities.a.files.password_file: ", 2},
		{"token", 0o666, "identities.s.step.token_file: ", 2},
		{"probe", 0o666, "upstreams.u.health.password_file: ", 2},
		{"admin", 0o666, "admin.token_file: read " + at("admin") + ": every user of this host may write it", 2},
		{"users", 0o666, "listeners.front.http_connect.users_file: " + at("users") + ": every user of this host may write it", 2},
		{"ca.crt", 0o666, "identities.a.files.ca: ", 2},
		{"a.crt", 0o666, "identities.a.files.cert: ", 2},
	} {
		if err := os.Chmod(at(tt.file), tt.mode); err != nil {
			t.Fatal(err)
		}
		out, code := checked(t, text)
		if code != tt.code || !strings.Contains(out, tt.want) || tt.want == "" && strings.Contains(out, "every user") {
			t.Errorf("%s with %#o: code %d\n%s\nwant code %d with %q", tt.file, tt.mode, code, out, tt.code, tt.want)
		}
		os.Chmod(at(tt.file), 0o600)
	}
}

// The folder of the packages gives its files the group of the service. Root, who calls
// `check`, reads a key that this group may not read, and is warned.
func TestCheckOfFilesThatTheServiceMayNotRead(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a folder to another group")
	}
	const service = 4711 // a group
	text, folder := exposing(t)
	key := filepath.Join(folder, "a.key")
	for _, tt := range []struct {
		name        string
		group       int // of the key
		folder, key fs.FileMode
		want        bool
	}{
		{"a copy of a private key", service, os.ModeSetgid | 0o755, 0o600, true},
		{"a key of another group", 0, os.ModeSetgid | 0o755, 0o640, true},
		{"as the manual says", service, os.ModeSetgid | 0o755, 0o640, false},
		{"a folder of no service", service, 0o755, 0o600, false},
	} {
		for _, err := range []error{os.Chown(folder, 0, service), os.Chmod(folder, tt.folder), os.Chown(key, 0, tt.group), os.Chmod(key, tt.key)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		out, code := checked(t, text)
		const want = ": root may read it (mode 0600), and the group of its folder (gid 4711)"
		if got := strings.Contains(out, ": identities.a.files.key: "+key+": root may read it"); code != 0 || got != tt.want || tt.key == 0o600 && got && !strings.Contains(out, want) {
			t.Errorf("%s: warned: %t, want %t; code %d\n%s", tt.name, got, tt.want, code, out)
		}
	}
}

func TestConfigurationThatEverybodyMayWrite(t *testing.T) {
	path := cmdtest.WriteConfig(t, cmdtest.Good)
	for mode, want := range map[fs.FileMode]int{0o666: 2, 0o644: 0, 0o660: 0} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, errs, code := explained(t, "-c", path); code != want || code != 0 && !strings.Contains(errs, path+": every user of this host may write it (mode 0666); chmod o-w it") {
			t.Errorf("mode %#o: exit code %d, want %d\n%s", mode, code, want, errs)
		}
	}
}

// A secret mounted by Kubernetes is a link, through a link, to a file owned by root
// that everyone can read. It is used, with a warning.
func TestKubernetesSecret(t *testing.T) {
	text, folder := exposing(t)
	at := func(name string) string { return filepath.Join(folder, name) }
	for _, err := range []error{os.Mkdir(at("..1"), 0o755), os.Rename(at("a.key"), at("..1/a.key")), os.Chmod(at("..1/a.key"), 0o644),
		os.Symlink("..1", at("..data")), os.Symlink("..data/a.key", at("a.key"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if out, code := checked(t, text); code != 0 || !strings.Contains(out, ": identities.a.files.key: ") || !strings.Contains(out, "defaultMode: 0440") {
		t.Errorf("code %d\n%s", code, out)
	}
	text, _, _ = strings.Cut(text, "  s: {step") // its CA does not exist here
	_, log := runFile(t, cmdtest.WriteConfig(t, text+"upstreams: {u: {endpoints: [\"127.0.0.1:1\"], required: false, tls: {identity: a}}}\nlisteners: {front: {listen: \"127.0.0.1:0\", upstream: u}}\n"))
	log.Await(t, `"level":"WARN","msg":"secret not kept from other users","setting":"identities\.a\.files\.key: `)
}

// A revocation list that refuses all certificates of its CA is an error for `check`;
// one that refuses some is a warning.
func TestCheckOfRevocationLists(t *testing.T) {
	text, folder := exposing(t)
	text = strings.Replace(text, "ca: ", "crl: "+filepath.Join(folder, "ca.crl")+", ca: ", 1)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "some CA"}, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	forCAs := []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 3, 0x82, 1, 0xff}}}
	for _, tt := range []struct {
		from, to time.Duration
		more     []pkix.Extension
		want     string
		code     int
	}{
		{-time.Hour, time.Hour, nil, "ok (", 0},
		{-2 * time.Hour, -time.Hour, nil, `identities.a.files.crl: ` + filepath.Join(folder, "ca.crl") + `: the revocation list of "CN=some CA" cannot be used: it expired at`, 2},
		{time.Hour, 2 * time.Hour, nil, "is the clock right?", 2},
		{-time.Hour, time.Hour, forCAs, ": identities.a.files.crl: ", 0},
	} {
		template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(tt.from), NextUpdate: time.Now().Add(tt.to), ExtraExtensions: tt.more}
		list, err := x509.CreateRevocationList(rand.Reader, template, ca, key)
		if err != nil {
			t.Fatal(err)
		}
		cmdtest.WriteFile(t, filepath.Join(folder, "ca.crl"), string(list))
		if out, code := checked(t, text); code != tt.code || !strings.Contains(out, tt.want) {
			t.Errorf("code %d\n%s\nwant code %d with %q", code, out, tt.code, tt.want)
		}
	}
}

// A certificate that cannot be a root is a warning of `check` at the key of its file.
func TestCheckOfUnusedRoots(t *testing.T) {
	negative, err := os.ReadFile("../../certs/files/testdata/negative.crt")
	if err != nil {
		t.Fatal(err)
	}
	p := cmdtest.NewPairs(t)
	p.Issue("a")
	bundle := filepath.Join(p.Folder, "bundle.crt")
	cmdtest.WriteFile(t, bundle, string(negative)+string(p.CA.RootPEM()))
	for key, text := range map[string]string{
		"identities.a.files.ca": "identities: {a: {files: {ca: DIR/bundle.crt}}}\nupstreams: {u: {endpoints: [\"h:1\"]}}\nlisteners: {l: {listen: \"127.0.0.1:0\", upstream: u}}",
		"upstreams.u.tls.ca":    "upstreams: {u: {endpoints: [\"h:1\"], tls: {ca: DIR/bundle.crt}}}\nlisteners: {l: {listen: \"127.0.0.1:0\", upstream: u}}",
		"listeners.l.tls.ca": "identities: {a: {files: {cert: DIR/a.crt, key: DIR/a.key}}}\nupstreams: {u: {endpoints: [\"h:1\"]}}\n" +
			"listeners: {l: {listen: \"127.0.0.1:0\", upstream: u, tls: {identity: a, ca: DIR/bundle.crt, principals: [any]}}}",
	} {
		want := ": " + key + ": " + bundle + `: certificate 1 of the file ("CN=files test negative") is not used as a root: `
		if out, code := checked(t, strings.ReplaceAll(text, "DIR", p.Folder)); code != 0 || strings.Count(out, want) != 1 {
			t.Errorf("code %d\n%s\nwant once %q", code, out, want)
		}
	}
}
