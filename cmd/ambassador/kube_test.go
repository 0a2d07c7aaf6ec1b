package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

// inject runs `ambassador kube inject`.
func inject(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"kube", "inject"}, args...), strings.NewReader(stdin), &out, &errs)
	return out.String(), errs.String(), code
}

const somePod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  containers:\n  - name: c\n    image: c:1\n"

// manifests returns the objects of all manifests that print prints, by file.
func manifests(t *testing.T) map[string][]map[string]any {
	t.Helper()
	files, err := filepath.Glob("assets/kubernetes/*.yaml")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d manifests, %v", len(files), err)
	}
	out := map[string][]map[string]any{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var all []map[string]any
		if err := yaml.Load(text, &all, yaml.WithAllDocuments()); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		out[filepath.Base(file)] = all
	}
	return out
}

// at returns the value at a path of keys; nil if there is none.
func at(v any, path ...string) any {
	for _, key := range path {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	return v
}

// TestConfigurationsOfManifests lets check judge every configuration in a ConfigMap, with
// certificates beside it.
func TestConfigurationsOfManifests(t *testing.T) {
	n := 0
	for file, objects := range manifests(t) {
		for _, o := range objects {
			text, ok := at(o, "data", "ambassador.yaml").(string)
			if !ok {
				continue
			}
			n++
			dir := t.TempDir()
			pairs := cmdtest.NewPairs(t)
			pair, root := pairs.Issue("app"), filepath.Join(pairs.Folder, "root.crt")
			cmdtest.WriteFile(t, root, string(pairs.CA.RootPEM()))
			for name, path := range map[string]string{"tls.crt": pair.Cert, "tls.key": pair.Key, "ca.crt": root} {
				if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			cmdtest.WriteFile(t, filepath.Join(dir, "ambassador.yaml"), text)
			var out, errs bytes.Buffer
			code := run(t.Context(), []string{"check", "-c", filepath.Join(dir, "ambassador.yaml")}, strings.NewReader(""), &out, &errs)
			if code != 0 || !strings.HasSuffix(out.String(), ": ok (1 listener, 1 upstream, 1 identity)\n") || strings.Contains(out.String(), "warning") {
				t.Errorf("%s: exit code %d\n%s%s", file, code, &out, &errs)
			}
		}
	}
	if n != 2 {
		t.Errorf("%d configurations", n)
	}
}

// TestManifestsAreRestricted asserts what Pod Security calls restricted of every
// container, the DaemonSet's hostNetwork apart, and that volumes are there.
func TestManifestsAreRestricted(t *testing.T) {
	n := 0
	for file, objects := range manifests(t) {
		for _, o := range objects {
			spec := at(o, "spec", "template", "spec")
			if spec == nil {
				continue
			}
			if at(spec, "securityContext", "runAsNonRoot") != true || at(spec, "securityContext", "seccompProfile", "type") != "RuntimeDefault" || (at(spec, "hostNetwork") == true) != (file == "daemonset.yaml") {
				t.Errorf("%s: the pod is not restricted", file)
			}
			var volumes []string
			for _, v := range at(spec, "volumes").([]any) {
				volumes = append(volumes, at(v, "name").(string))
			}
			init, _ := at(spec, "initContainers").([]any)
			for _, c := range slices.Concat(init, at(spec, "containers").([]any)) {
				n++
				if at(c, "securityContext", "allowPrivilegeEscalation") != false || !cmp.Equal(at(c, "securityContext", "capabilities", "drop"), []any{"ALL"}) {
					t.Errorf("%s: container %v is not restricted", file, at(c, "name"))
				}
				mounts, _ := at(c, "volumeMounts").([]any)
				for _, m := range mounts {
					if !slices.Contains(volumes, at(m, "name").(string)) {
						t.Errorf("%s: no volume %v", file, at(m, "name"))
					}
				}
			}
		}
	}
	if n != 5 {
		t.Errorf("%d containers", n)
	}
}

// TestSidecarsAreTheSame asserts that inject and the manifests have the same sidecar.
func TestSidecarsAreTheSame(t *testing.T) {
	injected, stderr, code := inject(t, somePod, "-f", "-", "--image", "registry.example.com/ambassador:v1", "--config", "ambassador", "--secret", "db-client")
	if code != 0 || stderr != "pod/p: injected\n" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var pod map[string]any
	if err := yaml.Load([]byte(injected), &pod); err != nil {
		t.Fatal(err)
	}
	all := manifests(t)
	for _, file := range []string{"sidecar.yaml", "job.yaml"} {
		if diff := cmp.Diff(at(pod, "spec", "initContainers"), at(all[file][0], "spec", "template", "spec", "initContainers")); diff != "" {
			t.Errorf("%s and inject differ: %s", file, diff)
		}
	}
}

func TestKustomizationNamesFiles(t *testing.T) {
	all := manifests(t)
	for _, file := range at(all["kustomization.yaml"][0], "resources").([]any) {
		if all[file.(string)] == nil {
			t.Errorf("there is no %v", file)
		}
	}
	dir := filepath.Join(t.TempDir(), "base")
	if out, stderr, code := printed(t, "kubernetes", "--output-dir", dir); code != 0 || out+stderr != "" {
		t.Fatalf("exit code %d: %s%s", code, out, stderr)
	}
	for file := range all {
		want, _ := os.ReadFile(filepath.Join("assets/kubernetes", file))
		if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v", file, err)
		}
	}
	if _, stderr, code := printed(t, "kubernetes", "--output-dir", dir); code != 1 || !strings.Contains(stderr, ": exists; give another folder") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestInjectCommand(t *testing.T) {
	config := func(text string) string {
		path := filepath.Join(t.TempDir(), "ambassador.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const body = "listeners: {l: {listen: \"127.0.0.1:1\", upstream: u}}\nupstreams: {u: {endpoints: [\"h:1\"]}}\n"
	for name, test := range map[string]struct {
		args   []string
		code   int
		stdout string // a pattern
		stderr string
	}{
		"a map":             {[]string{"--config", "c", "--probe-port", "9999"}, 0, `containerPort: 9999[^$]*configMap:\n\s+name: c\n`, "pod/p: injected\n"},
		"a map, no port":    {[]string{"--config", "c", "--probe-port", "0"}, 0, `exec: {command: \["/ambassador", "wait"`, "pod/p: injected\n"},
		"a file":            {[]string{"--config", config(body + "metrics: {listen: \":9905\"}\n")}, 0, `ambassador/config: \|\n      listeners:[^$]*containerPort: 9905`, "pod/p: injected\n"},
		"a file, no port":   {[]string{"--config", config(body)}, 0, `exec: {command`, "pod/p: injected\n"},
		"a file, loopback":  {[]string{"--config", config(body + "metrics: {listen: \"127.0.0.1:9905\"}\n")}, 0, `exec: {command`, "pod/p: injected\n"},
		"a mistake":         {[]string{"--config", config(body + "metrics: {lisen: x}\n")}, 2, "", `ambassador.yaml:3:11: metrics.lisen: unknown key; did you mean listen?`},
		"a variable":        {[]string{"--config", config(strings.ReplaceAll(body, "h:1", "${HOST}:1"))}, 2, "", `HOST`},
		"nothing to ask":    {[]string{"--config", config(body + "admin: {listen: \"\"}\n")}, 2, "", `the probes need metrics`},
		"too large":         {[]string{"--config", config(body + "#" + strings.Repeat("x", 200<<10))}, 2, "", `put it into a ConfigMap`},
		"no such file":      {[]string{"--config", "./missing.yaml"}, 2, "", `missing.yaml`},
		"port of a file":    {[]string{"--config", "./x.yaml", "--probe-port", "1"}, 2, "", `--probe-port is for a ConfigMap`},
		"no config":         {nil, 2, "", `--config: required`},
		"bad name":          {[]string{"--config", "C"}, 2, "", `"C" is no name of a ConfigMap; a file needs the ending`},
		"uninject and more": {[]string{"--uninject"}, 2, "", `--image has no effect with --uninject`},
	} {
		t.Run(name, func(t *testing.T) {
			out, stderr, code := inject(t, somePod, append([]string{"-f", "-", "--image", "a:1"}, test.args...)...)
			if code != test.code || !regexp.MustCompile(test.stdout).MatchString(out) || !strings.Contains(stderr, test.stderr) || code != 0 && out != "" {
				t.Errorf("exit code %d\n%s%s", code, out, stderr)
			}
			if code != 0 {
				return
			}
			if back, stderr, code := inject(t, out, "-f", "-", "--uninject"); code != 0 || back != somePod || stderr != "pod/p: removed\n" {
				t.Errorf("uninject: exit code %d, %s%s", code, back, stderr)
			}
		})
	}
	if _, stderr, code := inject(t, "a: 1\n", "-f", "-", "--image", "a:1", "--config", "c"); code != 2 || !strings.HasPrefix(stderr, "ambassador: standard input:1:1: not a Kubernetes manifest") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if _, stderr, code := inject(t, "", "--uninject"); code != 2 || !strings.Contains(stderr, "-f: required") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
