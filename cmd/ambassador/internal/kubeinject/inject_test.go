package kubeinject

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"
)

var update = flag.Bool("update", false, "write the golden files")

// withMap is a sidecar with a ConfigMap, withText one with a configuration in the pod.
var (
	withMap  = Sidecar{Image: "registry.example.com/ambassador:v1", ConfigMap: "ambassador", Secret: "db-client", ProbePort: 9902}
	withText = Sidecar{Image: "ambassador@sha256:" + strings.Repeat("a", 64),
		Config: "# a comment\nlisteners:\n  db: {listen: \"127.0.0.1:5432\", upstream: db}\n\nupstreams:\n  db: {endpoints: [\"h:1\"]}\n"}
)

// TestGolden injects into each testdata/NAME.yaml and compares with NAME.golden and, for
// NAME.text.golden, with a configuration in the pod. It asserts what holds for all.
func TestGolden(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.yaml")
	if len(files) < 8 {
		t.Fatalf("%d files", len(files))
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for suffix, sidecar := range map[string]Sidecar{".golden": withMap, ".text.golden": withText} {
			golden := strings.TrimSuffix(file, ".yaml") + suffix
			if _, err := os.Stat(golden); err != nil && suffix != ".golden" {
				continue
			}
			t.Run(filepath.Base(golden), func(t *testing.T) {
				got, results, err := Inject(file, source, sidecar)
				if err != nil {
					t.Fatal(err)
				}
				var b strings.Builder
				for _, r := range results {
					b.WriteString("# " + r.String() + "\n")
				}
				text := b.String() + string(got)
				if *update {
					if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, _ := os.ReadFile(golden)
				if diff := cmp.Diff(string(want), text); diff != "" {
					t.Errorf("%s: %s", golden, diff)
				}
				laws(t, source, got, sidecar)
			})
		}
	}
}

// laws asserts what holds for every injection that succeeded.
func laws(t *testing.T, source, injected []byte, sidecar Sidecar) {
	t.Helper()
	again, results, err := Inject("again", injected, sidecar)
	for _, r := range results {
		if r.Action == actionInjected {
			t.Errorf("the second injection says: %s", r)
		}
	}
	if err != nil || !bytes.Equal(again, injected) {
		t.Errorf("the second injection: %v: %s", err, cmp.Diff(string(injected), string(again)))
	}
	other := sidecar
	other.Image += "0"
	if changed, _, err := Inject("other", injected, other); err != nil {
		t.Errorf("another sidecar: %v", err)
	} else if back, _, err := Inject("back", changed, sidecar); err != nil || !bytes.Equal(back, injected) {
		t.Errorf("another sidecar, and this one again: %v: %s", err, cmp.Diff(string(injected), string(back)))
	}
	restored, _, err := Uninject("restored", injected)
	if err != nil {
		t.Errorf("uninject: %v", err)
		return
	}
	if same := bytes.Equal(restored, source); !same && !bytes.ContainsAny(source, "[{~") {
		t.Errorf("uninject does not restore the bytes: %s", cmp.Diff(string(source), string(restored)))
	}
	if diff := cmp.Diff(withoutEmpties(values(t, source)), withoutEmpties(values(t, restored))); diff != "" {
		t.Errorf("uninject does not restore the meaning: %s", diff)
	}
}

// values decodes every document.
func values(t *testing.T, text []byte) (out []any) {
	t.Helper()
	if err := yaml.Load(text, &out, yaml.WithAllDocuments()); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return out
}

// withoutEmpties removes keys whose value is null, [] or {}.
func withoutEmpties(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = withoutEmpties(v[i])
		}
		return v
	case map[string]any:
		for key, value := range v {
			switch value := withoutEmpties(value).(type) {
			case nil:
				delete(v, key)
			case []any:
				if len(value) == 0 {
					delete(v, key)
				}
			case map[string]any:
				if len(value) == 0 {
					delete(v, key)
				}
			}
		}
		return v
	}
	return v
}

// podWith is a Pod with more lines below spec; they begin at line 5.
func podWith(lines string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n" + lines
}

const someContainer = "  containers:\n  - {name: c, image: i}\n"

func TestErrors(t *testing.T) {
	for name, test := range map[string]struct{ source, want string }{
		"no manifest":       {"a: 1\n", "f.yaml:1:1: not a Kubernetes manifest: it needs apiVersion and kind"},
		"second document":   {podWith(someContainer) + "---\n\nlist:\n- 1\n", "f.yaml:9:1: not a Kubernetes manifest"},
		"scalar":            {"hello\n", "f.yaml:1:1: not a Kubernetes manifest"},
		"list":              {"- a\n", "f.yaml:1:1: not a Kubernetes manifest"},
		"item":              {"apiVersion: v1\nkind: List\nitems:\n- {}\n", "f.yaml:4:3: not a Kubernetes manifest"},
		"template":          {"# x\n---\na: {{ .Values.x }}\nb: {{- end }}\n", "f.yaml:"},
		"helm":              {podWith("  {{- with .Values.x }}\n"), "`helm template`"},
		"container":         {podWith("  containers:\n  - name: ambassador\n    image: other:1\n"), `f.yaml:6:5: pod/p has a container "ambassador" that ` + "`ambassador kube inject` did not add; rename it, or set the annotation ambassador/inject: disabled"},
		"init container":    {podWith(someContainer + "  initContainers:\n  - name: ambassador\n"), `f.yaml:8:5: pod/p has an init container "ambassador"`},
		"volume":            {podWith(someContainer + "  volumes:\n  - name: ambassador-run\n"), `f.yaml:8:5: pod/p has a volume "ambassador-run"`},
		"alias":             {podWith("  a: &a [{name: c}]\n  containers: *a\n"), "f.yaml:6:15: containers is the alias *a; write it out"},
		"anchor":            {"apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations: &ann\n    a: b\nspec:\n" + someContainer, "f.yaml:5:16: remove the anchor &ann"},
		"list anchor":       {podWith(someContainer + "  volumes: &v\n  - name: x\n"), "f.yaml:7:12: remove the anchor &v"},
		"merge key":         {podWith("  <<: {volumes: []}\n" + someContainer), "f.yaml:5:3: initContainers may come from the merge key <<; write it out"},
		"no list":           {podWith("  containers: {a: b}\n"), "f.yaml:5:15: containers: a list is needed here"},
		"no mapping":        {"apiVersion: v1\nkind: Pod\nspec: [1]\n", "f.yaml:3:7: spec: a mapping is needed here"},
		"no metadata":       {"apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - name: c\n", "f.yaml:1:1: a Pod needs metadata with a name"},
		"annotation":        {"apiVersion: v1\nkind: Pod\nmetadata:\n  annotations:\n    ambassador/inject: off\nspec:\n" + someContainer, `f.yaml:5:24: ambassador/inject: "off"; use enabled or disabled`},
		"hostNetwork":       {podWith("  hostNetwork: 1\n" + someContainer), "f.yaml:5:16: hostNetwork: use true or false"},
		"hostNetwork list":  {podWith("  hostNetwork: [true]\n" + someContainer), "f.yaml:5:16: hostNetwork: use true or false"},
		"unquoted value":    {podWith("  containers:\n  - name: c\n    image: {{ .Values.image }}\n"), "f.yaml:7:12: a template that is not rendered; render it first, as by `helm template`"},
		"quoted value":      {podWith("  containers:\n  - name: c\n    image: \"{{ .Values.image }}:{{ .Values.tag }}\"\n"), "f.yaml:7:12: a template that is not rendered"},
		"part of a value":   {"apiVersion: v1\nkind: Service\nmetadata: {name: x-{{ .Release.Name }}}\n", "f.yaml:3:"},
		"include":           {"apiVersion: v1\nkind: Service\nmetadata:\n  name: '{{ include \"shop.name\" . }}'\n", "f.yaml:4:9: a template that is not rendered"},
		"containerz":        {podWith("  containerz:\n  - {name: c}\n"), "f.yaml:5:3: pod/p has no containers here; correct the key"},
		"no containers":     {podWith("  containers: []\n"), "f.yaml:5:15: pod/p has no containers here"},
		"no template":       {"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: w}\nspec:\n  templates: {}\n", "f.yaml:5:3: deployment/w has no containers here"},
		"no spec":           {"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: w}\n", "f.yaml:1:1: deployment/w has no containers here"},
		"case of a kind":    {"apiVersion: apps/v1\nkind: deployment\n", "f.yaml:2:7: kind: deployment; did you mean Deployment?"},
		"tab":               {podWith("\tcontainers: []\n"), "f.yaml:5:"},
		"several documents": {"a: 1\n---\nb: 1\n", "f.yaml:1:1: not a Kubernetes manifest: it needs apiVersion and kind\nf.yaml:3:1: not"},
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := Inject("f.yaml", []byte(test.source), withMap)
			if err == nil || !strings.Contains(err.Error(), test.want) || out != nil {
				t.Errorf("%v, want %q\n%s", err, test.want, out)
			}
		})
	}
}

// TestHostNetwork asserts that every word which kubectl reads as true keeps the sidecar
// off the node's network.
func TestHostNetwork(t *testing.T) {
	for word, want := range map[string]string{
		"true": actionSkipped, "True": actionSkipped, "TRUE": actionSkipped, "yes": actionSkipped, "On": actionSkipped, "y": actionSkipped,
		"false": actionInjected, "No": actionInjected, "off": actionInjected, "n": actionInjected, "null": actionInjected,
	} {
		_, results, err := Inject("f", []byte(podWith("  hostNetwork: "+word+"\n"+someContainer)), withMap)
		if err != nil || len(results) != 1 || results[0].Action != want {
			t.Errorf("hostNetwork: %s: %v, %v; want %s", word, results, err, want)
		}
	}
}

// TestLists asserts that lists of a known kind give their items its kind, and that other
// kinds which end in List are passed through.
func TestLists(t *testing.T) {
	const template = "  spec:\n    template:\n      spec:\n        containers:\n        - name: c\n"
	for source, want := range map[string]string{
		"apiVersion: apps/v1\nkind: DeploymentList\nitems:\n- metadata:\n    name: web\n" + template:                                  "deployment/web: injected",
		"apiVersion: v1\nkind: PodList\nitems:\n- metadata:\n    name: p\n  spec:\n    containers:\n    - name: c\n":                  "pod/p: injected",
		"apiVersion: apps/v1\nkind: DeploymentList\nitems: []\n":                                                                      "",
		"apiVersion: policy.example.com/v1\nkind: DenyList\nmetadata:\n  name: d\nitems:\n- 10.0.0.1\n":                               "denylist/d: unchanged",
		"apiVersion: example.com/v1\nkind: DeploymentList\nmetadata:\n  name: foreign\nitems:\n- metadata:\n    name: x\n" + template: "deploymentlist/foreign: unchanged",
	} {
		out, results, err := Inject("f", []byte(source), withMap)
		got := ""
		for _, r := range results {
			got += r.String()
		}
		if err != nil || got != want {
			t.Errorf("%q, %v; want %q for\n%s", got, err, want, source)
			continue
		}
		laws(t, []byte(source), out, withMap)
	}
}

func TestSidecarErrors(t *testing.T) {
	for want, s := range map[string]Sidecar{
		`--image: "a b" is no image`:              {Image: "a b", ConfigMap: "c"},
		`"" is no image`:                          {ConfigMap: "c"},
		"needs a ConfigMap or a config":           {Image: "a"},
		`--config: "C" is no name of a ConfigMap`: {Image: "a", ConfigMap: "C"},
		`--secret: "a: b" is no name of a Secret`: {Image: "a", ConfigMap: "c", Secret: "a: b"},
		"--probe-port: 70000 is no port":          {Image: "a", ConfigMap: "c", ProbePort: 70000},
	} {
		if _, _, err := Inject("f", nil, s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for _, image := range []string{"a", "a:1", "localhost:5000/a/b:1.2-x", "ghcr.io/A/b@sha256:" + strings.Repeat("0", 64)} {
		if _, _, err := Inject("f", nil, Sidecar{Image: image, ConfigMap: "c"}); err != nil {
			t.Error(err)
		}
	}
}

// TestScalarsAreStrings asserts that a name which looks like a number or a boolean stays
// a string, also for a parser of YAML 1.1.
func TestScalarsAreStrings(t *testing.T) {
	for _, name := range []string{"123", "null", "on", "1e3", "0x1f", "1.2", "true", "n", "2001-01-01"} {
		s := Sidecar{Image: name, ConfigMap: name, Secret: name}
		out, _, err := Inject("f", []byte(podWith(someContainer)), s)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(strings.ReplaceAll(string(out), annotationInjected, ""), `e: "`+name+`"`); n != 3 {
			t.Errorf("%s is quoted %d times, want 3:\n%s", name, n, out)
		}
		laws(t, []byte(podWith(someContainer)), out, s)
	}
}

// TestTextForThePodIsNoTemplate has expressions in {{ }} that the programs in a pod evaluate.
func TestTextForThePodIsNoTemplate(t *testing.T) {
	for _, source := range []string{
		podWith("  containers:\n  - name: c\n    args: [\"--format={{.Names}}\", '{{- with secret \"a\" }}{{ .Data.b }}']\n"),
		"apiVersion: v1\nkind: ConfigMap\ndata:\n  chart.yaml: |\n    a: {{ .Values.x }}\n",
		podWith("  # {{ .Values.x }}\n" + someContainer),
	} {
		if _, _, err := Inject("f", []byte(source), withMap); err != nil {
			t.Errorf("%v\n%s", err, source)
		}
	}
}

// TestDisabledNeedsNoContainers has a patch that opts out.
func TestDisabledNeedsNoContainers(t *testing.T) {
	_, results, err := Inject("f", []byte("apiVersion: apps/v1\nkind: Deployment\nmetadata: {annotations: {ambassador/inject: disabled}}\nspec: {replicas: 5}\n"), withMap)
	if err != nil || len(results) != 1 || results[0].Action != actionSkipped {
		t.Errorf("%v %v", results, err)
	}
}

// TestUninjectLeavesOthers asserts that a sidecar of the user's is not removed, and that
// a document without ours stays the same bytes.
func TestUninjectLeavesOthers(t *testing.T) {
	for _, source := range []string{
		podWith("  initContainers:\n  - name: ambassador\n    image: x\n" + someContainer),
		"{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c}]}}",
		"", "# nothing\n", "---\n---\n",
	} {
		if out, _, err := Uninject("f", []byte(source)); err != nil || string(out) != source {
			t.Errorf("%v\n%s\n%s", err, source, out)
		}
	}
}

// FuzzInject asserts the laws for every text that is accepted.
func FuzzInject(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(podWith("  containers:\n  - name: c\n    args:\n    - |+\n      x\n\n  volumes: &v\n  # c\n  - name: x\n")))
	f.Add([]byte(podWith("  containers: [{name: c}]\n  volumes: [\n  ]\n")))
	f.Fuzz(func(t *testing.T, source []byte) {
		for _, sidecar := range []Sidecar{withMap, withText} {
			got, _, err := Inject("fuzz", source, sidecar)
			if err != nil {
				continue
			}
			again, _, err := Inject("again", got, sidecar)
			if err != nil || !bytes.Equal(again, got) {
				t.Errorf("the second injection: %v\n%s", err, again)
			}
			if _, _, err := Uninject("restored", got); err != nil {
				t.Errorf("uninject: %v\n%s", err, got)
			}
		}
	})
}
