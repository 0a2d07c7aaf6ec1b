package integration

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// TestDockerfileImage proves that the image is what it says: nothing but the
// binary, roots, and folders that its user may write to.
func TestDockerfileImage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, final, ok := strings.Cut(string(text), "\nFROM scratch\n")
	if !ok {
		t.Fatal("the final stage does not begin with nothing")
	}
	for _, line := range []string{
		`COPY --from=build /etc/ssl/certs/ca-certificates\.crt /etc/ssl/certs/ca-certificates\.crt`,
		`COPY --from=build --chown=(\d+:\d+) /out/run/ambassador /run/ambassador`,
		`COPY --from=build /out/root/ /`,
		`COPY --from=build /out/ambassador /ambassador`,
		`ENV RUNTIME_DIRECTORY=/run/ambassador`,
		`USER [1-9]\d*:[1-9]\d*`,
		`ENTRYPOINT \["/ambassador"\]`,
		`HEALTHCHECK .* CMD \["/ambassador", "wait", "--timeout", "1s"\]`,
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(final) {
			t.Errorf("the image has no line %s", line)
		}
	}
	owner := regexp.MustCompile(`--chown=(\d+:\d+) /out/run`).FindStringSubmatch(final)
	user := regexp.MustCompile(`(?m)^USER (.*)$`).FindStringSubmatch(final)
	if owner == nil || user == nil || owner[1] != user[1] {
		t.Errorf("the folder of the admin socket belongs to %q, and the image runs as %q", owner, user)
	}
	if strings.Contains(final, "\nEXPOSE ") {
		t.Error("the image exposes a port: its listeners are on a loopback")
	}
	gomod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(gomod)
	if !strings.Contains(string(text), "FROM golang:"+string(version[1])+" AS build\n") {
		t.Errorf("the image is not built by Go %s, which go.mod wants", version[1])
	}
}

// TestDockerfile proves that the build line of the Dockerfile makes a binary that
// runs where nothing else is: no interpreter, no shared library.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("an ELF binary is made on Linux")
	}
	need(t, "sh")
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^RUN (.*\bgo build .*)$`).FindSubmatch(text)
	if m == nil {
		t.Fatal("the Dockerfile has no line RUN … go build …")
	}
	out := filepath.Join(shortDir(t), "ambassador")
	line := strings.Replace(string(m[1]), "/out/ambassador", out, 1)
	cmd := exec.Command("sh", "-ec", line)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "VERSION=v1.2.3-4-gabc")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, text)
	}
	f, err := elf.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary wants an interpreter, so it is not static")
		}
	}
	if libs, _ := f.ImportedLibraries(); len(libs) > 0 {
		t.Errorf("the binary wants the libraries %q", libs)
	}
	if text, err := exec.Command(out, "version").CombinedOutput(); err != nil || !strings.HasPrefix(string(text), "ambassador v1.2.3-4-gabc (") {
		t.Errorf("ambassador version: %v\n%s\nwant that of the build argument", err, text)
	}
	t.Run("exec probe", func(t *testing.T) { execProbe(t, out) })
}

// TestDockerfileBuild builds the Dockerfile with a real engine that needs no service, on a
// base with Debian and the installed Go, and runs the image.
func TestDockerfileBuild(t *testing.T) {
	t.Parallel()
	if !long() {
		t.Skip("takes two minutes; AMBASSADOR_TEST_LONG=1 runs it")
	}
	need(t, "buildah", "mmdebstrap", "go")
	needRoot(t, "mmdebstrap")
	dir := t.TempDir()
	const script = `cd "$1"
engine="buildah --root $1/root --runroot $1/run --storage-driver vfs"
. /etc/os-release
mkdir base && mmdebstrap --quiet --variant=essential --include=ca-certificates "$VERSION_CODENAME" base/base.tar
cp -r "$(go env GOROOT)" base/go
printf 'FROM scratch\nADD base.tar /\nCOPY go /usr/local/go\nENV PATH=/usr/local/go/bin:/usr/sbin:/usr/bin:/sbin:/bin\n' >base/Containerfile
$engine bud --quiet --pull-never --isolation chroot -t "docker.io/library/golang:$3" base
$engine bud --pull-never --isolation chroot --format docker -v "$(go env GOMODCACHE):/root/go/pkg/mod" -v "$(go env GOCACHE):/root/.cache/go-build" \
	--build-arg VERSION=v1.2.3 -t ambassador "$2"
$engine from --pull-never --name c ambassador
$engine mount c >mounted`
	source, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	gomod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(gomod)
	if text, err := exec.Command("sh", "-ec", script, "sh", dir, source, string(version[1])).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, tail(string(text), 8<<10))
	}
	mounted, err := os.ReadFile(filepath.Join(dir, "mounted"))
	if err != nil {
		t.Fatal(err)
	}
	root := strings.TrimSpace(string(mounted))
	if at, err := os.Stat(filepath.Join(root, "tmp")); err != nil || at.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		t.Errorf("the image's /tmp: %v, %v; the user of the image cannot write to it", at, err)
	}
	needInImage(t, root)
	if text, err := inImage(root, demoFolder, "/ambassador", "demo", "--once").CombinedOutput(); err != nil {
		t.Errorf("demo --once: %v\n%s", err, text)
	}
}

// TestDockerfileVersion proves that the build fails if nothing tells it the version.
func TestDockerfileVersion(t *testing.T) {
	t.Parallel()
	need(t, "sh", "grep")
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^RUN (if /out/ambassador version .*)$`).FindSubmatch(text)
	if m == nil {
		t.Fatal("the Dockerfile does not check the version")
	}
	for version, fails := range map[string]bool{"devel": true, "v1.2.3": false, "v0.0.0-20261128215413-12d60b2f00d5": false} {
		fake := filepath.Join(shortDir(t), "fake")
		if err := os.WriteFile(fake, []byte("#!/bin/sh\necho 'ambassador "+version+" (go1.26, linux/amd64)'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		text, err := exec.Command("sh", "-ec", strings.Replace(string(m[1]), "/out/ambassador", fake, 1)).CombinedOutput()
		if (err != nil) != fails || fails && !strings.Contains(string(text), "--build-arg VERSION=") {
			t.Errorf("version %s: %v\n%s", version, err, text)
		}
	}
}

// execProbe proves that a probe which runs the binary in its container finds the process
// there, though the root is read-only, as Kubernetes and docker can make it.
func execProbe(t *testing.T, static string) {
	need(t, "unshare", "chroot", "mount", "sh")
	needRoot(t, "unshare --mount")
	config := writeFile(t, "ambassador.yaml", "listeners: {front: {listen: \"127.0.0.1:0\", upstream: up}}\nupstreams: {up: {endpoints: [\"127.0.0.1:1\"], required: false}}\n")
	const script = `cd "$1"
mkdir -p run/ambassador tmp dev/shm proc && chown 65532:65532 run/ambassador && cp "$2" ambassador.yaml && chmod 0755 . && chmod 0644 ambassador.yaml
mount --bind . . && cd "$1" && mount -o remount,bind,ro . && mount -t proc proc proc && mount -t tmpfs -o mode=1777 shm dev/shm
export RUNTIME_DIRECTORY=/run/ambassador
chroot --userspec=65532:65532 . /ambassador run -c /ambassador.yaml &
for i in 1 2 3 4 5 6 7 8 9 10; do
	chroot --userspec=65532:65532 . /ambassador wait --timeout 3s && exit 0
done
exit 1`
	p, err := launch(exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", script, "sh", filepath.Dir(static), config))
	if err != nil {
		t.Fatal(err)
	}
	code, err := p.exit(2 * patience)
	if err != nil || code != 0 || p.stdout.String() == "" || !strings.Contains(p.stdout.String(), "listening admin unix:/dev/shm/ambassador-65532/admin.sock") {
		t.Errorf("exit code %d, %v\n%s%s", code, err, p.stdout, p.stderr)
	}
}
