package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.yaml.in/yaml/v4"
)

// descriptor, manifest and imageConfig are the parts of OCI images that the test reads.
type descriptor struct {
	MediaType, Digest string
	Platform          struct{ OS, Architecture string }
	Annotations       map[string]string
}

type manifest struct {
	Manifests, Layers []descriptor
	Config            descriptor
}

type imageConfig struct {
	OS, Architecture, Created string
	Config                    struct {
		User            string
		Entrypoint, Cmd []string
		Env             []string
		Labels          map[string]string
		ExposedPorts    map[string]any
		Healthcheck     struct{ Test []string }
	}
}

// makeImage runs integration/image.
func makeImage(t *testing.T, platforms string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	cmd := exec.Command("./image", "--out", dir, "--version", "v9.8.7", "--source", "https://example.com/ambassador", "--platforms", platforms)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("integration/image: %v\n%s", err, text)
	}
	return dir
}

// blob reads a part of an OCI layout and compares it with its digest.
func blob(t *testing.T, dir string, d descriptor, into any) []byte {
	t.Helper()
	name := strings.TrimPrefix(d.Digest, "sha256:")
	text, err := os.ReadFile(filepath.Join(dir, "oci/blobs/sha256", name))
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != name {
		t.Errorf("%s: its digest is %x", d.Digest, sum)
	}
	if into != nil {
		if err := json.Unmarshal(text, into); err != nil {
			t.Fatal(err)
		}
	}
	return text
}

// sums returns the SHA-256 of every file in a folder.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(filepath.Join(dir, path))
		out[path] = fmt.Sprintf("%x", sha256.Sum256(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestImage proves that integration/image makes the same bytes twice, that they are an
// OCI index and an archive for docker, and that the image runs as Kubernetes runs it.
func TestImage(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("the image is run on Linux")
	}
	need(t, "sh", "bash", "git")
	platforms := []string{"linux/" + runtime.GOARCH}
	if long() {
		platforms = []string{"linux/amd64", "linux/arm64"}
	}
	dir := makeImage(t, strings.Join(platforms, ","))
	if a, b := sums(t, dir), sums(t, makeImage(t, strings.Join(platforms, ","))); !maps.Equal(a, b) || len(a) < 5 {
		t.Errorf("two builds differ:\n%v\n%v", a, b)
	}
	var top, index manifest
	blobOfFile(t, filepath.Join(dir, "oci/index.json"), &top)
	if len(top.Manifests) != 1 || top.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "ambassador:v9.8.7" {
		t.Fatalf("index.json: %+v", top)
	}
	blob(t, dir, top.Manifests[0], &index)
	var have []string
	var own []byte // the layer for this machine
	for _, m := range index.Manifests {
		have = append(have, m.Platform.OS+"/"+m.Platform.Architecture)
		layer := checkImage(t, dir, m)
		if m.Platform.Architecture == runtime.GOARCH {
			own = layer
		}
		checkArchive(t, filepath.Join(dir, "ambassador-linux-"+m.Platform.Architecture+".tar"))
	}
	if !slices.Equal(have, platforms) {
		t.Errorf("platforms %q", have)
	}
	root := shortDir(t)
	unpack(t, own, root)
	t.Run("demo", func(t *testing.T) { runDemo(t, root) })
	t.Run("pod", func(t *testing.T) { runPod(t, root) })
}

func blobOfFile(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

// checkImage checks one image of the layout, and returns its layer.
func checkImage(t *testing.T, dir string, d descriptor) []byte {
	t.Helper()
	var m manifest
	var c imageConfig
	blob(t, dir, d, &m)
	blob(t, dir, m.Config, &c)
	if len(m.Layers) != 1 {
		t.Fatalf("%d layers", len(m.Layers))
	}
	if c.Architecture != d.Platform.Architecture || c.Config.User != "65532:65532" || len(c.Config.ExposedPorts) != 0 || c.Created != "2023-11-14T22:13:20Z" ||
		!slices.Equal(c.Config.Entrypoint, []string{"/ambassador"}) || !slices.Equal(c.Config.Cmd, []string{"run"}) ||
		!slices.Equal(c.Config.Healthcheck.Test, []string{"CMD", "/ambassador", "wait", "--timeout", "1s"}) {
		t.Errorf("the image is run as %+v", c)
	}
	revision, err := exec.Command("git", "rev-parse", "HEAD").Output()
	want := map[string]string{"title": "ambassador", "description": "Makes the network connections of a program that cannot be changed",
		"version": "v9.8.7", "created": "2023-11-14T22:13:20Z", "source": "https://example.com/ambassador"}
	if err == nil {
		want["revision"] = strings.TrimSpace(string(revision))
	}
	for name, value := range want {
		if got := c.Config.Labels["org.opencontainers.image."+name]; got != value {
			t.Errorf("label %s: %q, want %q", name, got, value)
		}
	}
	if len(c.Config.Labels) != len(want) {
		t.Errorf("labels %v", c.Config.Labels)
	}
	return blob(t, dir, m.Layers[0], nil)
}

// checkArchive asserts that an archive is what `docker load` reads.
func checkArchive(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files, r := map[string][]byte{}, tar.NewReader(f)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	var images []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(files["manifest.json"], &images); err != nil || len(images) != 1 || !slices.Equal(images[0].RepoTags, []string{"ambassador:v9.8.7"}) ||
		len(images[0].Layers) != 1 || files[images[0].Layers[0]] == nil || files[images[0].Config] == nil {
		t.Errorf("%s: %v, %+v", path, err, images)
	}
}

// unpack writes a layer to a folder, as an engine does, and checks what is in it.
func unpack(t *testing.T, layer []byte, root string) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(layer))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, fmt.Sprintf("%s %o %d:%d", h.Name, h.Mode, h.Uid, h.Gid))
		path := filepath.Join(root, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.Mkdir(path, 0o755)
		} else {
			var text []byte
			if text, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, text, 0o755)
			}
		}
		if err == nil && os.Getuid() == 0 {
			err = os.Chown(path, h.Uid, h.Gid)
		}
		if err == nil {
			err = os.Chmod(path, h.FileInfo().Mode())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"etc/ 755 0:0", "etc/ssl/ 755 0:0", "etc/ssl/certs/ 755 0:0", "etc/ssl/certs/ca-certificates.crt 644 0:0", "run/ 755 0:0",
		"run/ambassador/ 755 65532:65532", "tmp/ 1777 0:0", "ambassador 755 0:0"}
	if !slices.Equal(names, want) {
		t.Errorf("the layer has %q", names)
	}
	roots, err := os.ReadFile(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt"))
	if n := bytes.Count(roots, []byte("-----BEGIN CERTIFICATE-----")); err != nil || n < 100 {
		t.Errorf("%d roots, %v", n, err)
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
}

// inImage runs a command line, as user 65532 and process 1, in a folder that has an
// image, read-only as docker --read-only makes it. mounts are commands before.
func inImage(root, mounts string, args ...string) *exec.Cmd {
	const script = `root=$1; shift; cd "$root"
mount --bind . . && cd "$root" && ` + "%s" + `mount -o remount,bind,ro . && mount -t proc proc proc && mount -t tmpfs -o mode=1777 shm dev/shm
export RUNTIME_DIRECTORY=/run/ambassador
exec setpriv --no-new-privs chroot --userspec=65532:65532 . "$@"`
	return exec.Command("unshare", append([]string{"--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", fmt.Sprintf(script, mounts), "sh", root}, args...)...)
}

func needInImage(t *testing.T, root string) {
	t.Helper()
	need(t, "unshare", "chroot", "mount", "setpriv", "nsenter")
	needRoot(t, "unshare --mount")
	for _, dir := range []string{"proc", "dev/shm", "etc/ambassador"} { // which an engine makes
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// demoFolder mounts what --tmpfs /tmp of docker does. The demo writes its files there.
const demoFolder = "mount -t tmpfs -o mode=1777 tmp tmp && "

// runDemo proves that the image makes a whole round trip by itself, as docker runs it with
// --read-only --tmpfs /tmp.
func runDemo(t *testing.T, root string) {
	needInImage(t, root)
	if text, err := inImage(root, demoFolder, "/ambassador", "demo", "--once").CombinedOutput(); err != nil {
		t.Errorf("demo --once: %v\n%s", err, text)
	}
	text, err := inImage(root, "", "/ambassador", "version", "--json").CombinedOutput()
	if err != nil || !strings.Contains(string(text), `"version": "v9.8.7"`) || !strings.Contains(string(text), `"date": "2023-11-14T22:13:20Z"`) {
		t.Errorf("version: %v\n%s", err, text)
	}
}

// probe and sidecar are the parts of a manifest that the test uses.
type probe struct {
	HTTPGet struct{ Path string } `yaml:"httpGet"`
}

type sidecar struct {
	Args      []string
	Startup   probe `yaml:"startupProbe"`
	Readiness probe `yaml:"readinessProbe"`
	Liveness  probe `yaml:"livenessProbe"`
}

// readManifests reads the sidecar of kubernetes/sidecar, and the configuration of
// kubernetes/configmap.
func readManifests(t *testing.T) (c sidecar, configuration string) {
	t.Helper()
	var deployment struct {
		Spec struct {
			Template struct {
				Spec struct {
					InitContainers []sidecar `yaml:"initContainers"`
				}
			}
		}
	}
	var configMap struct{ Data map[string]string }
	for file, into := range map[string]any{"sidecar": &deployment, "configmap": &configMap} {
		text, err := exec.Command(binary, "print", "kubernetes", file).Output()
		if err == nil {
			err = yaml.Load(text, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return deployment.Spec.Template.Spec.InitContainers[0], configMap.Data["ambassador.yaml"]
}

// kubelet writes files into a folder as the kubelet does for a volume: into a new folder,
// which a link then leads to.
func kubelet(t *testing.T, folder, version string, files map[string]string) {
	t.Helper()
	fail := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	fail(os.Mkdir(filepath.Join(folder, ".."+version), 0o755))
	for name, text := range files {
		path := filepath.Join(folder, ".."+version, name)
		fail(os.WriteFile(path, []byte(text), 0o440))
		fail(os.Chown(path, 0, 65532)) // fsGroup
	}
	fail(os.Symlink(".."+version, filepath.Join(folder, "..data_tmp")))
	fail(os.Rename(filepath.Join(folder, "..data_tmp"), filepath.Join(folder, "..data")))
	for name := range files {
		if err := os.Symlink("..data/"+name, filepath.Join(folder, name)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
}

// runPod proves that the sidecar of the manifests runs with the image: with their
// arguments and configuration, a read-only root, volumes as the kubelet makes them,
// and the probes; that a changed ConfigMap is loaded; and that SIGTERM ends process 1.
func runPod(t *testing.T, root string) {
	needInImage(t, root)
	keys := newPKI(t)
	srv := startServer(t, keys.mtls(t), echo)
	c, configuration := readManifests(t)
	for _, change := range [][2]string{{`listen: ":9902"`, `listen: ":0"`}, {"127.0.0.1:5432", "127.0.0.1:0"}, {"db.example.com:5432", srv.addr},
		{"    starttls: postgres\n", ""}, {"{identity: db}", "{identity: db, server_name: localhost}"}} {
		if !strings.Contains(configuration, change[0]) {
			t.Fatalf("the ConfigMap has no %q", change[0])
		}
		configuration = strings.Replace(configuration, change[0], change[1], 1)
	}
	read := func(name string) string {
		text, err := os.ReadFile(keys.file(name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	volume := shortDir(t)
	if err := os.Chmod(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"ambassador.yaml": configuration, "tls.crt": read("client.crt"), "tls.key": read("client.key"), "ca.crt": read("ca.crt")}
	kubelet(t, volume, "2026_1", files)
	mounts := "mount -t tmpfs -o mode=0777 run run/ambassador && mount --bind '" + volume + "' etc/ambassador && mount -o remount,bind,ro etc/ambassador && "
	p, err := launch(inImage(root, mounts, append([]string{"/ambassador"}, c.Args...)...))
	if err != nil {
		t.Fatal(err)
	}
	a := &ambassador{p, t}
	t.Cleanup(func() {
		p.signal(os.Kill) // which ends its child
		p.exit(patience)
		if t.Failed() {
			t.Logf("%s\n%s", p.stdout, tail(p.stderr.String(), 8<<10))
		}
	})
	if admin := a.addr("admin"); admin != "unix:/run/ambassador/admin.sock" {
		t.Errorf("the admin API is at %s", admin)
	}
	metrics := a.addr("metrics")
	probed := "127.0.0.1" + metrics[strings.LastIndexByte(metrics, ':'):]
	for _, path := range []string{c.Startup.HTTPGet.Path, c.Readiness.HTTPGet.Path, c.Liveness.HTTPGet.Path} {
		if err := eventually(patience, func() error { return wantStatus(probed, path, 200) }); err != nil {
			t.Error(err)
		}
	}
	conn := a.connect("db")
	if got := says(t, conn, "hello"); got != "hello" {
		t.Errorf("%q", got)
	}
	pid := childOf(t, p)
	inside := exec.Command("nsenter", "--target", strconv.Itoa(pid), "--mount", "--root", "--setuid", "65532", "--setgid", "65532", "/ambassador", "wait", "--timeout", "3s")
	inside.Env = []string{"RUNTIME_DIRECTORY=/run/ambassador"}
	if text, err := inside.CombinedOutput(); err != nil {
		t.Errorf("the health check: %v\n%s", err, text)
	}
	files["ambassador.yaml"] = configuration + "drain: {timeout: 3s}\n"
	kubelet(t, volume, "2026_2", files)
	a.await(`"msg":"reloaded"`)
	conn.Close()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	a.ended(0)
}

func wantStatus(addr, path string, want int) error {
	body, status, err := requestAt(addr, "GET", path)
	if err == nil && status != want {
		err = fmt.Errorf("%s: %d %s", path, status, body)
	}
	return err
}

// says sends a line and returns the answer.
func says(t *testing.T, c io.ReadWriter, line string) string {
	t.Helper()
	if _, err := io.WriteString(c, line); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(line))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// childOf is the only child of unshare: process 1 of the namespace.
func childOf(t *testing.T, p *process) int {
	t.Helper()
	pid := p.cmd.Process.Pid
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return child
}
