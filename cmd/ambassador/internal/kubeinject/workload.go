package kubeinject

import (
	"cmp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// templates has the path of the pod template in each kind of manifest that has one, by
// API group and kind. A Pod is a pod template itself.
var templates = map[string][]string{
	"/Pod":                   {},
	"/PodTemplate":           {"template"},
	"/ReplicationController": {"spec", "template"},
	"apps/Deployment":        {"spec", "template"},
	"apps/StatefulSet":       {"spec", "template"},
	"apps/DaemonSet":         {"spec", "template"},
	"apps/ReplicaSet":        {"spec", "template"},
	"batch/Job":              {"spec", "template"},
	"batch/CronJob":          {"spec", "jobTemplate", "spec", "template"},
}

// field is a key of a mapping with its value; the zero field is one that is missing.
type field struct{ key, value *yaml.Node }

// workload is a manifest, and the parts of its pod template.
type workload struct {
	kind, name string
	template   field // of the pod; value is nil if there is none
	// The fields below are those of the template.
	metadata, annotations, spec, initContainers, containers, volumes field

	// lacks is where a kind that needs a pod template with containers has none; else nil.
	lacks    *yaml.Node
	injected bool   // the sidecar in it is ours
	skip     string // why no sidecar may be added; empty: it may
}

func (w *workload) String() string {
	if w.name == "" {
		return strings.ToLower(w.kind)
	}
	return strings.ToLower(w.kind) + "/" + w.name
}

// result is what Inject does with the manifest.
func (w *workload) result() Result {
	switch {
	case w.template.value == nil && w.lacks == nil:
		return Result{w.String(), actionUnchanged, ""}
	case w.skip != "":
		return Result{w.String(), actionSkipped, w.skip}
	}
	return Result{w.String(), actionInjected, ""}
}

// workloads returns the manifests of the document: one, or those of a List.
func (d *document) workloads() ([]*workload, error) {
	if d.root == nil {
		return nil, nil
	}
	return d.manifests(d.root, "", "")
}

// manifests returns the manifests of n. The items of a list of one kind, such as
// DeploymentList, need not say their version and kind: they are the defaults. Another
// kind that ends in List is a manifest like any other, such as a custom DenyList.
func (d *document) manifests(n *yaml.Node, defaultVersion, defaultKind string) (out []*workload, err error) {
	version, kind := cmp.Or(text(n, "apiVersion"), defaultVersion), cmp.Or(text(n, "kind"), defaultKind)
	if version == "" || kind == "" {
		return nil, d.fail(n, "not a Kubernetes manifest: it needs apiVersion and kind")
	}
	of, isList := strings.CutSuffix(kind, "List")
	_, isKnown := templates[groupOf(version)+"/"+of]
	switch {
	case version == "v1" && kind == "List":
		version, of = "", ""
	case !isList || !isKnown:
		w, err := d.workload(n, version, kind)
		return []*workload{w}, err
	}
	items, err := d.lookup(n, "items", yaml.SequenceNode)
	if err != nil || items.value == nil {
		return nil, err
	}
	for _, item := range items.value.Content {
		more, err := d.manifests(item, version, of)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// groupOf returns the API group of a version; empty: the core group.
func groupOf(version string) string {
	group, _, ok := strings.Cut(version, "/")
	if !ok {
		return ""
	}
	return group
}

// workload reads a manifest that is no list.
func (d *document) workload(n *yaml.Node, version, kind string) (*workload, error) {
	metadata, err := d.lookup(n, "metadata", yaml.MappingNode)
	if err != nil {
		return nil, err
	}
	w := &workload{kind: kind, name: text(metadata.value, "name")}
	path, ok := templates[groupOf(version)+"/"+kind]
	if !ok {
		return w, d.checkKind(n, groupOf(version), kind)
	}
	at := field{value: n}
	for _, key := range path {
		next, err := d.lookup(at.value, key, yaml.MappingNode)
		if err != nil {
			return nil, err
		}
		if next.value == nil {
			w.lacks = at.value
			return w, d.decide(w, metadata.value)
		}
		at = next
	}
	w.template = at
	if err := d.parts(w); err != nil {
		return nil, err
	}
	return w, d.decide(w, metadata.value)
}

// checkKind refuses a kind that is a workload's but for the case of its letters.
func (d *document) checkKind(n *yaml.Node, group, kind string) error {
	for known := range templates {
		if name := known[strings.Index(known, "/")+1:]; strings.EqualFold(known, group+"/"+kind) && name != kind {
			return d.fail(lookup(n, "kind").value, "kind: %s; did you mean %s?", kind, name)
		}
	}
	return nil
}

// parts finds the parts of the template. Without containers it is no template but a part
// of one, such as a patch.
func (d *document) parts(w *workload) (err error) {
	find := func(to *field, in *yaml.Node, key string, kind yaml.Kind) {
		if err == nil && in != nil {
			*to, err = d.lookup(in, key, kind)
		}
	}
	find(&w.metadata, w.template.value, "metadata", yaml.MappingNode)
	find(&w.annotations, w.metadata.value, "annotations", yaml.MappingNode)
	find(&w.spec, w.template.value, "spec", yaml.MappingNode)
	find(&w.containers, w.spec.value, "containers", yaml.SequenceNode)
	find(&w.initContainers, w.spec.value, "initContainers", yaml.SequenceNode)
	find(&w.volumes, w.spec.value, "volumes", yaml.SequenceNode)
	if err == nil && (w.containers.value == nil || len(w.containers.value.Content) == 0) {
		w.lacks = cmp.Or(w.containers.value, w.spec.value, w.template.value)
		w.template = field{}
	}
	return err
}

// decide says whether a sidecar is there, and whether one may be.
func (d *document) decide(w *workload, metadata *yaml.Node) error {
	w.injected = w.template.value != nil && text(w.annotations.value, annotationInjected) != ""
	onHost, err := d.isTrue(w.spec.value, "hostNetwork")
	if err != nil {
		return err
	}
	if onHost {
		w.skip = "hostNetwork: true; its loopback is that of the node, which needs one ambassador for all: see `ambassador print kubernetes daemonset`"
	}
	of, err := d.lookup(metadata, "annotations", yaml.MappingNode)
	if err != nil {
		return err
	}
	for _, annotations := range []*yaml.Node{of.value, w.annotations.value} {
		switch at := lookup(annotations, annotationInject); {
		case at.value == nil, at.value.Value == "enabled":
		case at.value.Value == "disabled":
			w.skip = "annotation " + annotationInject + ": disabled"
		default:
			return d.fail(at.value, "%s: %q; use enabled or disabled", annotationInject, at.value.Value)
		}
	}
	return nil
}

// checkRoom refuses a template that has something with a name that we need, and one
// without a place for our annotation.
func (d *document) checkRoom(w *workload) error {
	if w.lacks != nil && w.skip == "" {
		return d.fail(w.lacks, "%s has no containers here; correct the key that should lead to them, or apply a patch first, as by `kubectl kustomize`", w)
	}
	if w.template.value == nil || w.injected || w.skip != "" {
		return nil
	}
	if w.template.key == nil && w.metadata.value == nil {
		return d.fail(w.template.value, "a Pod needs metadata with a name")
	}
	for _, list := range []struct {
		of    field
		what  string
		names []string
	}{
		{w.initContainers, "an init container", []string{containerName}},
		{w.containers, "a container", []string{containerName}},
		{w.volumes, "a volume", volumeNames},
	} {
		for _, item := range items(list.of) {
			if name := text(item, "name"); slices.Contains(list.names, name) {
				return d.fail(item, "%s has %s %q that `ambassador kube inject` did not add; rename it, or set the annotation %s: disabled", w, list.what, name, annotationInject)
			}
		}
	}
	return nil
}

// lookup finds a key. A null value is returned as such; another kind than the wanted one
// is an error.
func (d *document) lookup(m *yaml.Node, key string, kind yaml.Kind) (field, error) {
	f := lookup(m, key)
	switch {
	case f.value == nil && lookup(m, "<<").value != nil:
		return f, d.fail(m, "%s may come from the merge key <<; write it out", key)
	case f.value == nil, isNull(f.value), f.value.Kind == kind:
		return f, nil
	case f.value.Kind == yaml.AliasNode:
		return f, d.fail(f.value, "%s is the alias *%s; write it out", key, f.value.Value)
	}
	return f, d.fail(f.value, "%s: %s is needed here", key, map[yaml.Kind]string{yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list"}[kind])
}

func lookup(m *yaml.Node, key string) field {
	if m == nil || m.Kind != yaml.MappingNode {
		return field{}
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return field{m.Content[i], m.Content[i+1]}
		}
	}
	return field{}
}

// text returns the scalar at a key; empty if there is none.
func text(m *yaml.Node, key string) string {
	if v := lookup(m, key).value; v != nil && v.Kind == yaml.ScalarNode && !isNull(v) {
		return v.Value
	}
	return ""
}

// isTrue reports whether the boolean at a key is true, also as kubectl reads it, which
// takes the words of YAML 1.1.
func (d *document) isTrue(m *yaml.Node, key string) (bool, error) {
	v := lookup(m, key).value
	switch {
	case v == nil, isNull(v):
		return false, nil
	case v.Kind != yaml.ScalarNode:
	case slices.Contains([]string{"true", "yes", "on", "y"}, strings.ToLower(v.Value)):
		return true, nil
	case slices.Contains([]string{"false", "no", "off", "n"}, strings.ToLower(v.Value)):
		return false, nil
	}
	return false, d.fail(v, "%s: use true or false", key)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// items returns the items of a list.
func items(f field) []*yaml.Node {
	if f.value == nil {
		return nil
	}
	return f.value.Content
}
