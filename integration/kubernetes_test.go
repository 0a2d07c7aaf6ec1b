package integration

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// kubeAPIServer is the version of the API server that is tested with. Its module is in
// testdata.
const kubeAPIServer = "kube-apiserver-v1.36.3"

// apiServerBinary is a kube-apiserver that was built before. Building it takes about 510 s
// of processor time, which only the long tests spend.
func apiServerBinary(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("%v; there is no place where %s could be", err, kubeAPIServer)
	}
	path := filepath.Join(cache, "ambassador-test", kubeAPIServer)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if !long() {
		t.Skipf("%s is not there; AMBASSADOR_TEST_LONG=1 builds it once, in about 510 s of processor time. "+
			"The tests of cmd/ambassador/internal/kubernetes run against a fake of it instead", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	unfinished := fmt.Sprintf("%s.%d", path, os.Getpid()) // a build that is cut leaves no half binary
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", unfinished, "k8s.io/kubernetes/cmd/kube-apiserver")
	cmd.Dir = "testdata/kube-apiserver"
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build kube-apiserver: %v\n%s", err, text)
	}
	if err := os.Rename(unfinished, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// cluster is a genuine API server with etcd. There are no controllers and no nodes: the
// tests write what these would write.
type cluster struct {
	t         testing.TB
	dir       string // also the folder of the service account: token, ca.crt
	api, etcd *daemon
	client    *http.Client
}

const (
	adminToken = "admin-token"
	podToken   = "pod-token" // of the service account default/default
)

func newCluster(t testing.TB) *cluster {
	t.Helper()
	binary := apiServerBinary(t)
	need(t, "etcd")
	c := &cluster{t: t, dir: t.TempDir(), etcd: newDaemon(t), api: newDaemon(t)}
	ca, err := newAuthority("cluster CA")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.issue(leaf{cn: "kube-apiserver", dns: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	c.write("ca.crt", ca.pem)
	c.write("tls.crt", cert.cert)
	c.write("tls.key", cert.key)
	c.write("sa.key", newRSAKey(t))
	c.tokens(podToken)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	c.client = &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}

	peer, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	at, peers := "http://"+c.etcd.addr(), "http://127.0.0.1:"+peer
	c.etcd.command = func() *exec.Cmd {
		return exec.Command("etcd", "--data-dir", c.etcd.file("data"), "--unsafe-no-fsync", "--log-level=error", "--listen-client-urls", at, "--advertise-client-urls", at,
			"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers)
	}
	c.api.command = func() *exec.Cmd {
		return exec.Command(binary, "--etcd-servers="+at, "--bind-address=127.0.0.1", "--secure-port="+c.api.port,
			"--tls-cert-file="+c.file("tls.crt"), "--tls-private-key-file="+c.file("tls.key"), "--cert-dir="+c.file("certs"),
			"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+c.file("sa.key"), "--service-account-signing-key-file="+c.file("sa.key"),
			"--token-auth-file="+c.file("tokens.csv"), "--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24",
			"--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none", "--shutdown-delay-duration=0s", "--v=0")
	}
	c.api.within, c.etcd.within = 2*time.Minute, time.Minute
	c.etcd.start(t)
	c.startAPI()
	return c
}

// in is the cluster in a part of its test.
func (c *cluster) in(t testing.TB) *cluster {
	part := *c
	part.t = t
	return &part
}

func newRSAKey(t testing.TB) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
}

func (c *cluster) file(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) write(name string, text []byte) {
	c.t.Helper()
	if err := os.WriteFile(c.file(name), text, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// tokens makes token the only one of the pod, as the kubelet does. The API server reads it
// when it starts.
func (c *cluster) tokens(token string) {
	c.t.Helper()
	c.write("tokens.csv", []byte(adminToken+",admin,1,system:masters\n"+token+",system:serviceaccount:default:default,2,system:serviceaccounts\n"))
	c.write("token", []byte(token))
}

// startAPI starts the API server, and waits until it is ready.
func (c *cluster) startAPI() {
	c.t.Helper()
	c.api.start(c.t)
	c.t.Cleanup(func() { // on SIGTERM it would wait for its watches
		c.api.cmd.Process.Kill()
		<-c.api.exited
	})
	if err := eventually(2*time.Minute, func() error {
		code, body, err := c.ask("GET", "/readyz", "")
		if err == nil && code != 200 {
			err = fmt.Errorf("%d %s", code, body)
		}
		return err
	}); err != nil {
		c.t.Fatalf("the API server is not ready: %v\n%s", err, tail(c.api.stderr.String(), 4<<10))
	}
}

func (c *cluster) ask(method, path, body string) (code int, text string, err error) {
	r, err := http.NewRequest(method, "https://"+c.api.addr()+path, bytes.NewBufferString(body))
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Authorization", "Bearer "+adminToken)
	if r.Header.Set("Content-Type", "application/yaml"); method == "PATCH" {
		r.Header.Set("Content-Type", "application/apply-patch+yaml")
	}
	resp, err := c.client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// must asks, and ends the test if the answer is an error.
func (c *cluster) must(method, path, body string) {
	c.t.Helper()
	code, text, err := c.ask(method, path, body)
	if err != nil || code > 299 {
		c.t.Fatalf("%s %s: %d %v %s\n%s", method, path, code, err, text, body)
	}
}

var (
	kindLine       = regexp.MustCompile(`(?m)^kind: *(\w+)`)
	apiVersionLine = regexp.MustCompile(`(?m)^apiVersion: *(\S+)`)
	namespaceLine  = regexp.MustCompile(`(?m)^(?:  |metadata: .*?)\bnamespace: *([a-z0-9-]+)`)
	nameLine       = regexp.MustCompile(`(?m)^(?:  |metadata: .*?)\bname: *([a-z0-9.-]+)`)
)

// pathOf is the path of an object of a manifest, and its name.
func pathOf(manifest string) (path, name, kind string) {
	first := func(re *regexp.Regexp) string {
		if m := re.FindStringSubmatch(manifest); m != nil {
			return m[1]
		}
		return ""
	}
	kind = first(kindLine)
	resource := strings.ToLower(kind) + "s"
	if base, ok := strings.CutSuffix(resource, "ys"); ok {
		resource = base + "ies"
	}
	root := "/apis/" + first(apiVersionLine)
	if first(apiVersionLine) == "v1" {
		root = "/api/v1"
	}
	switch kind {
	case "Namespace", "ClusterRole", "ClusterRoleBinding":
		return root + "/" + resource, first(nameLine), kind
	}
	return root + "/namespaces/" + cmp.Or(first(namespaceLine), "default") + "/" + resource, first(nameLine), kind
}

// apply makes the objects of manifests what they say (server-side apply).
func (c *cluster) apply(manifests string) {
	c.t.Helper()
	for _, one := range documents(manifests) {
		path, name, _ := pathOf(one)
		c.must("PATCH", path+"/"+name+"?fieldManager=test&force=true", one)
	}
}

// documents splits YAML.
func documents(text string) (out []string) {
	for _, one := range regexp.MustCompile(`(?m)^---.*$`).Split(text, -1) {
		if kindLine.MatchString(one) {
			out = append(out, one)
		}
	}
	return out
}

// slice has one endpoint, as a controller would write it for a pod of the Service db.
func (c *cluster) slice(pod, addr, conditions string) {
	c.t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	c.apply(fmt.Sprintf(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s, namespace: default, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: pg, port: %s}]
endpoints: [{addresses: [%s], conditions: {%s}}]
`, pod, port, host, conditions))
}

const (
	podReady       = "ready: true, serving: true, terminating: false"
	podTerminating = "ready: false, serving: true, terminating: true"
)

func (c *cluster) unslice(pod string) {
	c.t.Helper()
	c.must("DELETE", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/"+pod, "")
}

// service makes the Service db.
func (c *cluster) service() {
	c.apply(`apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {ports: [{name: pg, port: 5432}]}
`)
}

// secret makes a Secret as cert-manager does.
func (c *cluster) secret(name string, p pair, ca []byte) {
	c.t.Helper()
	text := base64.StdEncoding.EncodeToString
	c.apply(fmt.Sprintf(`apiVersion: v1
kind: Secret
metadata: {name: %s, namespace: default}
type: kubernetes.io/tls
data: {tls.crt: %s, tls.key: %s, ca.crt: %s}
`, name, text(p.cert), text(p.key), text(ca)))
}

// run starts an ambassador with the environment of a pod.
func (c *cluster) run(t testing.TB, configuration string) *ambassador {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ambassador.yaml")
	if err := os.WriteFile(path, []byte(configuration), 0o600); err != nil {
		t.Fatal(err)
	}
	return startCmd(t, c.inPod(exec.Command(binary, "run", "-c", path)))
}

// inPod gives a command the environment of a pod.
func (c *cluster) inPod(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(os.Environ(), "KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT="+c.api.port, "AMBASSADOR_KUBERNETES_CREDENTIALS="+c.dir)
	return cmd
}

// podHost is an address that the API server accepts for endpoints: no loopback one.
func podHost(t testing.TB) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("this host has no address but loopback ones, which the API server does not accept for endpoints")
	return ""
}

// pod is a server with a name, to which it answers each line.
func startPod(t testing.TB, name string) *server {
	t.Helper()
	s, err := serveAt(net.JoinHostPort(podHost(t), "0"), nil, func(_ *server, c duplex) {
		b := make([]byte, 64)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			if _, err := io.WriteString(c, name+"\n"); err != nil {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

// visitPod makes a session, and returns the name of the pod that it reached.
func visitPod(addr string) (string, error) {
	conn, err := dialTCP(addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return askPod(conn)
}

func askPod(conn net.Conn) (string, error) {
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "who\n"); err != nil {
		return "", err
	}
	b := make([]byte, 64)
	n, err := conn.Read(b)
	return strings.TrimSpace(string(b[:n])), err
}

// load makes sessions until stop, and counts those that failed.
type load struct {
	work   sync.WaitGroup
	done   chan struct{}
	mu     sync.Mutex
	made   int
	failed []error
}

func newLoad(addr string) *load {
	l := &load{done: make(chan struct{})}
	for range 4 {
		l.work.Go(func() {
			for {
				select {
				case <-l.done:
					return
				default:
				}
				_, err := visitPod(addr)
				l.mu.Lock()
				if l.made++; err != nil {
					l.failed = append(l.failed, err)
				}
				l.mu.Unlock()
				time.Sleep(time.Millisecond) // a rate, no wait
			}
		})
	}
	return l
}

// stop ends the load, and fails the test if a session failed.
func (l *load) stop(t testing.TB) {
	t.Helper()
	close(l.done)
	l.work.Wait()
	t.Logf("%d sessions, %d failed", l.made, len(l.failed))
	if len(l.failed) > 0 || l.made == 0 {
		t.Errorf("%d of %d sessions failed; the first: %v", len(l.failed), l.made, l.failed)
	}
}

// reaches waits until twelve sessions in a row have reached exactly these pods, and
// returns how long that took.
func reaches(t testing.TB, addr string, pods ...string) time.Duration {
	t.Helper()
	began, want := time.Now(), strings.Join(pods, " ")
	if err := eventually(patience, func() error {
		seen := map[string]bool{}
		for range 12 {
			name, err := visitPod(addr)
			if err != nil {
				return err
			}
			seen[name] = true
		}
		got := ""
		for _, p := range []string{"a", "b", "c"} {
			if seen[p] {
				got += " " + p
			}
		}
		if got = strings.TrimSpace(got); got != want {
			return fmt.Errorf("sessions reach %q, want %q", got, want)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// TestKubernetes is one test of several parts, for one API server takes seconds to start.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	t.Run("manifests", func(t *testing.T) { c.in(t).testManifests(t) })
	t.Run("refused", func(t *testing.T) { c.in(t).testRefused(t) })
	t.Run("scaled", func(t *testing.T) { c.in(t).testScaled(t) })
	t.Run("secrets", func(t *testing.T) { c.in(t).testSecrets(t) })
	t.Run("restarted", func(t *testing.T) { c.in(t).testRestarted(t) })
}

const podConfiguration = `
listeners: {in: {listen: "127.0.0.1:0", upstream: db}}
upstreams: {db: {endpoints: [{kubernetes: "default/db:5432"}], resolve: 1s}}
`

// testManifests lets the API server judge every manifest that the binary prints.
func (c *cluster) testManifests(t *testing.T) {
	files, err := filepath.Glob("../cmd/ambassador/assets/kubernetes/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no manifests: ", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range documents(string(text)) {
			c.judge(t, filepath.Base(file), one)
		}
	}
	const wrong = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndta: {}\n"
	if code, text, err := c.ask("POST", "/api/v1/namespaces/default/configmaps?dryRun=All&fieldValidation=Strict", wrong); err != nil || code != 400 || !strings.Contains(text, "dta") {
		t.Errorf("a misspelled key: %d %s %v; the dry run is not strict", code, text, err)
	}
}

// judge makes a strict dry run of one object. The namespace must exist for that.
func (c *cluster) judge(t *testing.T, file, manifest string) {
	path, name, kind := pathOf(manifest)
	if kind == "Kustomization" || kind == "PodMonitor" || kind == "ServiceMonitor" || kind == "PrometheusRule" {
		t.Logf("%s: %s %s is not an object of Kubernetes itself, and was not judged", file, kind, name)
		return
	}
	if m := namespaceLine.FindStringSubmatch(manifest); m != nil && kind != "Namespace" {
		c.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: " + m[1] + "}\n")
	}
	code, text, err := c.ask("POST", path+"?dryRun=All&fieldValidation=Strict", manifest)
	if err != nil || code != http.StatusCreated {
		t.Errorf("%s: %s %s is refused: %d %s %v", file, kind, name, code, text, err)
		return
	}
	t.Logf("%s: %s %s is accepted", file, kind, name)
}

// testRefused asserts that a missing Role is named, and that applying what is printed
// suffices.
func (c *cluster) testRefused(t *testing.T) {
	c.service()
	pod := startPod(t, "a")
	c.slice("a", pod.addr, podReady)
	defer c.unslice("a")
	a := c.run(t, podConfiguration)
	a.await(`discovery has no new addresses.*does not allow system:serviceaccount:default:default to list,watch endpointslices.discovery.k8s.io,services in namespace default`)
	conn, err := dialTCP(a.addr("in"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if r := a.endsAs(conn, "dial", "dns"); !strings.Contains(r.Cause, "kubectl create role ambassador-discovery") {
		t.Errorf("the record has no fix: %v", r)
	}
	status, _ := a.ask("status")
	if !strings.Contains(status, "kubectl create rolebinding ambassador-discovery --namespace=default --role=ambassador-discovery --serviceaccount=default:default") {
		t.Errorf("status has no fix:\n%s", status)
	}
	t.Log(status)
	c.apply(printed(t, "kubernetes/rbac"))
	t.Logf("used %v after the Role was applied", reaches(t, a.addr("in"), "a"))
	a.await("discovery works again")
}

// testScaled scales a Service from 2 to 3 to 1 endpoints under load.
func (c *cluster) testScaled(t *testing.T) {
	pods := map[string]*server{}
	for _, name := range []string{"a", "b", "c"} {
		pods[name] = startPod(t, name)
	}
	c.slice("a", pods["a"].addr, podReady)
	c.slice("b", pods["b"].addr, podReady)
	defer c.unslice("c")
	a := c.run(t, podConfiguration)
	in := a.addr("in")
	reaches(t, in, "a", "b")
	lives := map[string]net.Conn{}
	for len(lives) < 2 {
		conn, err := dialTCP(in)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		name, err := askPod(conn)
		if err != nil {
			t.Fatal(err)
		}
		lives[name] = conn
	}
	l := newLoad(in)
	for range 10 {
		c.slice("a", pods["a"].addr, podReady)
		c.slice("b", pods["b"].addr, podReady)
		reaches(t, in, "a", "b")
		c.slice("c", pods["c"].addr, podReady)
		up := reaches(t, in, "a", "b", "c")
		c.slice("a", pods["a"].addr, podTerminating)
		c.slice("b", pods["b"].addr, podTerminating)
		t.Logf("2 → 3 endpoints: sessions reach all after %v; 3 → 1: they reach one after %v", up, reaches(t, in, "c"))
		c.unslice("a")
		c.unslice("b")
		reaches(t, in, "c")
		c.slice("a", pods["a"].addr, podReady)
		c.slice("b", pods["b"].addr, podReady)
		c.unslice("c")
	}
	c.slice("c", pods["c"].addr, podReady)
	c.unslice("a")
	c.unslice("b")
	reaches(t, in, "c")
	for name, conn := range lives {
		if got, err := askPod(conn); err != nil || got != name {
			t.Errorf("a session that was open to %s: %q, %v", name, got, err)
		}
	}
	l.stop(t)
	a.metric(`ambassador_addresses{upstream="db",endpoint="kubernetes:default/db:5432"}`, 1)
	c.testTestCommand(t)
}

// testTestCommand asserts that `ambassador test` follows the Service, too.
func (c *cluster) testTestCommand(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ambassador.yaml")
	if err := os.WriteFile(path, []byte(podConfiguration), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := c.inPod(exec.Command(binary, "test", "-c", path)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ok   resolve") {
		t.Errorf("ambassador test: %v\n%s", err, out)
	}
}

// testSecrets rotates Secrets that a TLS listener and an upstream with mutual TLS use.
func (c *cluster) testSecrets(t *testing.T) {
	keys := newPKI(t)
	issue := func(cn string) pair {
		p, err := keys.ca.issue(leaf{cn: cn, dns: []string{"localhost", "127.0.0.1"}})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	seen := make(chan string, 1000) // serials of clients' certificates
	db := startServer(t, keys.mtls(t), func(s *server, conn duplex) {
		seen <- conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
		echo(s, conn)
	})
	c.apply(strings.ReplaceAll(printed(t, "kubernetes/rbac"), "client-tls", "sidecar"))
	first := issue("first")
	c.secret("sidecar", first, keys.ca.pem)
	a := c.run(t, fmt.Sprintf(`
listeners:
  plain: {listen: "127.0.0.1:0", upstream: db}
  tls: {listen: "127.0.0.1:0", tls: {identity: me, client: none}, upstream: db}
identities: {me: {kubernetes: default/sidecar}}
upstreams: {db: {endpoints: ["%s"], tls: {identity: me, server_name: localhost}, health: {interval: 0s}}}
`, db.addr))
	roots := x509.NewCertPool()
	roots.AddCert(keys.ca.cert)
	serves := func(p pair) error { // both sides show the certificate
		conn, err := tls.Dial("tcp", a.addr("tls"), &tls.Config{RootCAs: roots, ServerName: "localhost"})
		if err != nil {
			return err
		}
		defer conn.Close()
		if got := conn.ConnectionState().PeerCertificates[0].SerialNumber; got.Cmp(p.serial) != 0 {
			return fmt.Errorf("the listener shows serial %v, want %v", got, p.serial)
		}
		if _, err := io.WriteString(conn, "x"); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			return err
		}
		for got := range seen {
			if got == p.serial.String() {
				return nil
			}
			if len(seen) == 0 {
				return fmt.Errorf("the upstream sees serial %v, want %v", got, p.serial)
			}
		}
		return nil
	}
	if err := eventually(patience, func() error { return serves(first) }); err != nil {
		t.Fatal(err)
	}
	live := a.connect("plain")
	line(t, live, "before")
	second, began := issue("second"), time.Now()
	c.secret("sidecar", second, keys.ca.pem)
	if err := eventually(patience, func() error { return serves(second) }); err != nil {
		t.Fatal(err)
	}
	t.Logf("rotated after %v", time.Since(began))
	c.secret("sidecar", pair{issue("x").cert, second.key, nil}, keys.ca.pem)
	a.await("identity not renewed.*secret default/sidecar: tls.key: the key does not match")
	if err := serves(second); err != nil {
		t.Errorf("after a bad pair: %v", err)
	}
	status, _ := a.ask("status")
	if !strings.Contains(status, "but the last load failed") || !strings.Contains(status, "secret default/sidecar") {
		t.Errorf("status does not say that the last pair is bad:\n%s", status)
	}
	line(t, live, "after")
	c.secret("sidecar", second, keys.ca.pem)
}

// testRestarted kills the API server under load, and starts it with another token.
func (c *cluster) testRestarted(t *testing.T) {
	first, second := startPod(t, "a"), startPod(t, "b")
	c.slice("a", first.addr, podReady)
	a := c.run(t, podConfiguration)
	in := a.addr("in")
	reaches(t, in, "a")
	live := a.connect("in")
	l := newLoad(in)
	if err := c.api.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-c.api.exited
	a.await(`discovery has no new addresses.*"addresses_kept":1`)
	status, _ := a.ask("status")
	if !strings.Contains(status, "discovery has no new answer") || !strings.Contains(status, "cannot be asked") {
		t.Errorf("status does not say that the API server is away:\n%s", status)
	}
	t.Log(status)
	reaches(t, in, "a")
	c.tokens("rotated-token")
	c.startAPI()
	c.slice("b", second.addr, podReady)
	t.Logf("seen %v after the API server was back", reaches(t, in, "a", "b"))
	if name, err := askPod(live); err != nil || name != "a" {
		t.Errorf("a session that was open before: %q, %v", name, err)
	}
	l.stop(t)
}
