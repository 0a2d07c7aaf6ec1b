package integration

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// nfpm builds the tool that makes packages, and returns its path. Its modules are not the
// ambassador's, so that they may have to be fetched first.
func nfpm(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("package/nfpm.go")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`nfpmTool = "(.*)"`).FindSubmatch(text)
	if m == nil {
		t.Fatal("package/nfpm.go does not say which nfpm it runs")
	}
	dir := shortDir(t)
	cmd := exec.Command("go", "install", string(m[1]))
	cmd.Env = append(cmd.Environ(), "GOBIN="+dir, "GOFLAGS=", "GOWORK=off", "GOOS=", "GOARCH=")
	if text, err := cmd.CombinedOutput(); err != nil {
		missing(t, fmt.Sprintf("nfpm (%s: %v: %s)", cmd, err, text))
	}
	return filepath.Join(dir, "nfpm")
}

// pack builds a Debian package of a copy of the source with a tool, and returns its path.
func pack(t *testing.T, tool, source, version string) string {
	t.Helper()
	out := shortDir(t)
	cmd := exec.Command("go", "run", "./integration/package", "-nfpm", tool, "-source", source, "-out", out, "-targets", "linux/"+runtime.GOARCH, "-formats", "deb",
		"-version", version, "-commit", strings.Repeat("0123456789", 4), "-date", "2026-11-29T06:31:02Z")
	cmd.Dir = ".."
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, text)
	}
	found, err := filepath.Glob(filepath.Join(out, "*.deb"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v: want one package", found, err)
	}
	return found[0]
}

// copySource copies the source to another folder, without what git ignores.
func copySource(t *testing.T) string {
	t.Helper()
	dir := shortDir(t)
	script := `git ls-files -z --cached --others --exclude-standard | tar -c --null -T - --ignore-failed-read | tar -x -C "$0"`
	cmd := exec.Command("sh", "-ec", script, dir)
	cmd.Dir = ".."
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return dir
}

func sumOf(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(text))
}

// TestPackage builds the Debian package twice, in two folders, and the next version of
// it. The bytes are the same; and on a booted Debian without Go the package is installed,
// configured, used by psql through mutual TLS, reloaded and upgraded with sessions live that
// go on, removed and purged.
func TestPackage(t *testing.T) {
	t.Parallel()
	need(t, "git", "tar", "dpkg", "apt-get", "systemd-analyze", "setpriv", "psql", "ss", "man")
	needRoot(t, "systemd-nspawn")
	tool := nfpm(t)
	keys := newPKI(t)
	pg := newPostgres(t, keys)
	pg.stop(t)
	a, again := pack(t, tool, ".", "v1.0.0"), pack(t, tool, copySource(t), "v1.0.0")
	if first, second := sumOf(t, a), sumOf(t, again); first != second {
		t.Errorf("the same source in another folder: %s has the sum %s, and %s has %s", a, first, again, second)
	}
	dir := shortDir(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("testdata/installed.sh")
	if err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]string{"a.deb": a, "b.deb": pack(t, tool, ".", "v1.1.0"), "self": self,
		"client.key": keys.file("client.key"), "client.crt": keys.file("client.crt"), "ca.crt": keys.file("ca.crt"), "server.key": keys.file("server.key"), "server.crt": keys.file("server.crt")} {
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"env":          fmt.Sprintf("PGBIN=%s PG_DIR=%s PGPORT=%s PGUSER_ID=%d PGGROUP_ID=%d PASSWORD='%s' SERVE_AS=%s\n", pg.bin, pg.dir, pg.port, pg.cred.Uid, pg.cred.Gid, pgPassword, serveAs),
		"resolv.conf":  "nameserver 127.0.0.1\n",
		"outside.yaml": "listeners: {x: {listen: \"127.0.0.1:0\", upstream: up}}\nupstreams: {up: {endpoints: [\"127.0.0.1:1\"], required: false}}\n",
		"ports.conf":   "[Service]\nAmbientCapabilities=CAP_NET_BIND_SERVICE\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := bootIn(t, dir, nil, string(script), "--bind="+pg.dir,
		"--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self")
	judgeInstalled(t, out)
}

// installed is what installed.sh must print, by name.
var installed = map[string]string{
	"go":               ``,
	"installed":        `install ok installed 1\.0\.0`,
	"version":          `ambassador v1\.0\.0 \(commit 012345678901 2026-11-29T06:31:02Z, go.*`,
	"enabled":          `disabled inactive`,
	"folder":           `root ambassador 2755`,
	"user":             `ambassador`,
	"man":              `/usr/share/man/man1/ambassador\.1\.gz`,
	"completion":       `complete .* ambassador`,
	"exposure":         `(0\.\d|1\.[0-5])`,
	"verify":           ``,
	"default":          `2 0 /etc/ambassador/ambassador\.yaml:1:1: .* comments`, // one start, not one each second
	"key":              `root ambassador 640`,
	"started":          `active enabled .*`,
	"query":            `42`,
	"status":           `ready`,
	"ps":               `1`,
	"process":          `ambassador`,
	"watchdog":         `30s fed`,
	"bad reload":       `1 active 1`,
	"reload":           `0`,
	"live":             `7 8`,
	"low port":         `exit-code 127\.0\.0\.1:389: ports below 1024 need a right.*`,
	"instance":         `active 1`,
	"storage":          `ambassador 700 [1-9]`,
	"both":             `2`,
	"choose":           `.+`,
	"first alone":      `ready`,
	"socket":           `42 active`,
	"while restarting": `43`,
	"upgraded":         `1\.1\.0 active active`,
	"restarted":        `yes ambassador v1\.1\.0`,
	"conffile":         `kept`,
	"live session":     `7 8`,
	"not carried":      ``,
	"carried":          `9 sessions carried over`,
	"query after":      `44`,
	"refused":          `the new version refuses the configuration of ambassador\.service same`,
	"echoes":           `8 sessions: every byte came back`,
	"lost":             `0`,
	"stopped":          `inactive`,
	"before removal":   `active active active`,
	"removed":          `1 inactive inactive inactive /etc/ambassador/ambassador\.yaml 0`,
	"kept":             `ca\.crt client\.crt client\.key pw second\.yaml`,
	"key kept":         `root ambassador 640`, // the group is not one without a name, which another package could get
	"left":             `/etc/ambassador( /etc/ambassador/(ca\.crt|client\.crt|client\.key|pw|second\.yaml)){5} ambassador:x:N: ambassador:x:N:Ambassador:\S+`,
	"gone":             ``,
	"end":              `reached`,
}

// judgeInstalled asserts what installed.sh printed.
func judgeInstalled(t *testing.T, out string) {
	t.Helper()
	said := map[string]string{}
	for line := range strings.Lines(out) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			said[name] = strings.TrimSpace(value)
		}
	}
	for name, want := range installed {
		if got, ok := said[name]; !ok || !regexp.MustCompile(`^`+want+`$`).MatchString(got) {
			t.Errorf("%s: %q, want %s", name, got, want)
		}
	}
	if said["sandbox"] == "" || said["sandbox"] != said["sandbox outside"] {
		t.Errorf("the sandbox of the service is %q, and outside of it %q", said["sandbox"], said["sandbox outside"])
	}
}
