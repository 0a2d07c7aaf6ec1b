package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// boot runs a real systemd in a container over the files of this host, which it cannot
// change, with a network of its own. Units are its unit files. It ends with the script,
// whose output is returned. /test is the folder of the test, /opt/ambassador the binary.
func boot(t testing.TB, units map[string]string, script string) (dir, out string) {
	t.Helper()
	dir = shortDir(t)
	return dir, bootIn(t, dir, units, script)
}

// bootIn is boot with a folder that has files already, and more options of systemd-nspawn.
func bootIn(t testing.TB, dir string, units map[string]string, script string, options ...string) (out string) {
	t.Helper()
	need(t, "unshare", "systemd-nspawn", "systemctl", "mount")
	needRoot(t, "systemd-nspawn")
	files := map[string]string{"check.sh": script, "units/check.target": "[Unit]\nRequires=check.service\n",
		"units/check.service": "[Unit]\nDefaultDependencies=no\nSuccessAction=exit-force\nFailureAction=exit-force\n[Service]\nType=oneshot\nTimeoutStartSec=200\n" +
			"ExecStart=/bin/sh /test/check.sh\nStandardOutput=file:/test/out\nStandardError=file:/test/err\n"}
	for name, text := range units {
		files["units/"+name] = "[Unit]\nDefaultDependencies=no\n" + text
	}
	if err := os.Mkdir(filepath.Join(dir, "units"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The mounts are in a namespace that ends with the container.
	const begin = `set -e
mkdir "$1/os" && mount -t tmpfs tmpfs "$1/os" && mkdir "$1/os/up" "$1/os/work" "$1/os/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/os/up,workdir=$1/os/work" "$1/os/root"
dir=$1 binary=$2
shift 2
exec systemd-nspawn --quiet --register=no --keep-unit --private-network --directory="$dir/os/root" --bind="$dir:/test" --bind-ro="$binary:/opt/ambassador" \
	--setenv=SYSTEMD_UNIT_PATH=/test/units: "$@" /lib/systemd/systemd --unit=check.target`
	args := append([]string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", begin, "sh", dir, binary}, options...)
	p, err := launch(exec.Command("unshare", args...))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.exit(8 * patience); err != nil {
		p.signal(os.Kill)
		p.exit(patience)
		t.Error(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatalf("systemd has not run the script: %v\n%s\n%s", err, p.stdout, p.stderr)
	}
	t.Cleanup(func() {
		if t.Failed() {
			trace, _ := os.ReadFile(filepath.Join(dir, "err"))
			t.Logf("the script printed:\n%s\n%s", text, trace)
		}
	})
	return string(text)
}

// unitOf is a unit of the ambassador, whose log is a file of the test.
func unitOf(name, keys string) string {
	return fmt.Sprintf("[Service]\nType=notify\nRuntimeDirectory=%[1]s\nExecStart=/opt/ambassador run -c /test/%[1]s.yaml\nStandardError=file:/test/%[1]s.log\n%[2]s", name, keys)
}

// TestSystemd proves, with a real systemd, that a socket which no listener uses is said
// and does no harm, that Accept=yes is refused in words, and that a drain has the time
// that its configuration gives it, whatever TimeoutStopSec of the unit is.
func TestSystemd(t *testing.T) {
	t.Parallel()
	need(t, "nc.openbsd")
	dir, out := boot(t, map[string]string{
		"used.socket":     "[Socket]\nListenStream=127.0.0.1:7001\nFileDescriptorName=front\nService=both.service\n",
		"unused.socket":   "[Socket]\nListenStream=127.0.0.1:7002\nFileDescriptorName=nobody\nService=both.service\n",
		"both.service":    unitOf("both", ""),
		"accept.socket":   "[Socket]\nListenStream=127.0.0.1:7003\nAccept=yes\n",
		"accept@.service": strings.Replace(unitOf("both", "StandardInput=null\n"), "both.log", "accept.log", 1),
		"drain.service":   unitOf("drain", "TimeoutStopSec=1\n"),
	}, `
cat >/test/both.yaml <<'E'
listeners: {front: {listen: "systemd:front", upstream: up}}
upstreams: {up: {endpoints: ["127.0.0.1:8001"], health: {interval: 0s}, required: false}}
E
cat >/test/drain.yaml <<'E'
drain: {timeout: 5s}
listeners: {front: {listen: "127.0.0.1:7004", upstream: up}}
upstreams: {up: {endpoints: ["127.0.0.1:8002"], health: {interval: 0s}, required: false}}
E
nc.openbsd -l 127.0.0.1 8001 >/test/received &
nc.openbsd -l 127.0.0.1 8002 >/test/asked &
systemctl start used.socket unused.socket accept.socket drain.service
echo through | nc.openbsd -N 127.0.0.1 7001
echo alone | nc.openbsd -N -w 5 127.0.0.1 7003
(echo waiting; sleep 60) | nc.openbsd 127.0.0.1 7004 & # its answer is due, so that the drain does not end the session
for i in $(seq 50); do grep -q waiting /test/asked && break || sleep 0.1; done
systemctl stop drain.service
echo drain: $(systemctl show -P Result drain.service), $(systemctl show -P ExecMainStatus drain.service)
echo both: $(systemctl is-active both.service)
echo accept: $(systemctl list-units --plain --no-legend --failed 'accept@*' | wc -l)
`)
	received, _ := os.ReadFile(filepath.Join(dir, "received"))
	for what, has := range map[string]bool{
		"through": strings.Contains(string(received), "through\n"), // the socket that is used
		"drain":   strings.Contains(out, "drain: success, 0\n"),
		"both":    strings.Contains(out, "both: active\n"),
		"accept":  strings.Contains(out, "accept: 1\n"),
	} {
		if !has {
			t.Errorf("%s: not as it should be", what)
		}
	}
	for name, want := range map[string]string{
		"both.log":   `"systemd passed a socket that no listener uses: .*"name":"nobody","sockets":1`,
		"accept.log": `ambassador: systemd passed the connection of one client, .*Accept=no`,
		"drain.log":  `"msg":"drained"`,
	} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !regexp.MustCompile(want).Match(text) {
			t.Errorf("%s has no %s: %v\n%s", name, want, err, text)
		}
	}
}
