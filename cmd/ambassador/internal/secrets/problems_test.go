package secrets

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/config"
)

// keysOfFiles are configurations by the key that names a file, with a verb for it.
func keysOfFiles() map[string]string {
	identity := cmdtest.Good + "identities: {me: {%s}}"
	files := func(more string) string { return fmt.Sprintf(identity, "files: {"+more+"}") }
	step := func(more string) string {
		return fmt.Sprintf(identity, "step: {url: 'https://127.0.0.1:1', fingerprint: "+strings.Repeat("0", 64)+", names: [a], "+more+"}")
	}
	return map[string]string{
		"admin.token_file":                    cmdtest.Good + "admin: {token_file: %q}",
		"listeners.l.socks5.users_file":       cmdtest.Ruled("socks5: {users_file: %q}", cmdtest.AllowAll),
		"listeners.l.http_connect.users_file": cmdtest.Ruled("http_connect: {users_file: %q}", cmdtest.AllowAll),
		"listeners.l.tls.ca":                  strings.Replace(files("cert: a, key: b"), "upstream: u", "upstream: u, tls: {identity: me, ca: %q, principals: [any]}", 1),
		"upstreams.u.tls.ca":                  cmdtest.Good + "    tls: {ca: %q}",
		"upstreams.u.health.password_file":    cmdtest.Good + "    starttls: mysql\n    tls: {}\n    health: {user: me, password_file: %q}",
		"identities.me.files.cert":            files("cert: %q, key: absent"),
		"identities.me.files.key":             files("cert: absent, key: %q"),
		"identities.me.files.pkcs12":          files("pkcs12: %q"),
		"identities.me.files.ca":              files("cert: absent, key: absent, ca: %q"),
		"identities.me.files.crl":             files("cert: absent, key: absent, crl: %q"),
		"identities.me.files.password_file":   files("cert: absent, key: absent, password_file: %q"),
		"identities.me.step.password_file":    step("provisioner: p, password_file: %q"),
		"identities.me.step.token_file":       step("storage: s, token_file: %q"),
	}
}

// TestNoKeyReadsWhatIsNoFile hangs until the test's timeout, or takes all memory,
// where it fails.
func TestNoKeyReadsWhatIsNoFile(t *testing.T) {
	folder := cmdtest.ShortDir(t)
	in := func(name string) string { return filepath.Join(folder, name) }
	cmdtest.Fifo(t, in("pipe"))
	ln, err := net.Listen("unix", in("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	large, err := os.Create(in("large"))
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	if err := large.Truncate(1 << 32); err != nil { // without a block on the disk
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", in("link")); err != nil {
		t.Fatal(err)
	}
	for key, text := range keysOfFiles() {
		for path, want := range map[string]string{
			in("pipe"): "it is a pipe, not a regular file", in("socket"): "it is a socket, not", folder: "it is a directory, not",
			"/dev/zero": "it is a device, not", in("link"): "it is a device, not", in("large"): "it has more than",
		} {
			f := parsed(t, fmt.Sprintf(text, path))
			i := slices.IndexFunc(Check(f), func(p config.Problem) bool {
				return p.Path == key && strings.Contains(p.Text, path) && strings.Contains(p.Text, want)
			})
			if i < 0 {
				t.Errorf("%s: %s: the problems are %v, want one with %q", key, path, Check(f), want)
			}
		}
	}
}
