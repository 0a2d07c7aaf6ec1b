package config

import (
	"go.yaml.in/yaml/v4"
)

// A few kilobytes of YAML can stand for gigabytes: an alias (*name) is a whole section
// again, and what it stands for may have aliases in it.

const (
	// maxAliased bounds what all aliases of a configuration stand for, in bytes. 20
	// listeners that share 200 rules have a third of it.
	maxAliased = 1 << 20
	// nodeWeight is what a value or a section counts beside its text.
	nodeWeight = 8
)

// weighAliases says whether the aliases below root stand for a bounded text. If they do
// not, the mistake is noted at the alias that is too much.
func (d *decoder) weighAliases(root *yaml.Node) bool {
	w := weigher{known: map[*yaml.Node]weight{}, within: map[*yaml.Node]bool{}}
	w.weigh(root)
	switch {
	case w.culprit == nil:
		return true
	case w.circular:
		d.fail(w.culprit, "", "*%s stands for a section that it is a part of; write out what you mean", w.culprit.Value)
	default:
		d.fail(w.culprit, "", "with *%s, the aliases of this file stand for more than %d KiB; repeat less by them, or make several files of it", w.culprit.Value, maxAliased>>10)
	}
	return false
}

// weight is the size of a node with all below it, and how much of that is behind
// aliases.
type weight struct{ all, aliased int }

// weigher weighs each node once, however many aliases lead to it.
type weigher struct {
	known    map[*yaml.Node]weight // what has an anchor
	within   map[*yaml.Node]bool   // what has an anchor, and is being weighed
	culprit  *yaml.Node            // the alias that is too much; nil: none is
	circular bool                  // because it never ends
}

func (w *weigher) weigh(n *yaml.Node) (total weight) {
	if n.Kind == yaml.AliasNode {
		return w.alias(n)
	}
	if known, ok := w.known[n]; ok {
		return known
	}
	if n.Anchor != "" {
		w.within[n] = true
		defer delete(w.within, n)
	}
	total.all = nodeWeight + len(n.Value)
	for _, child := range n.Content {
		below := w.weigh(child)
		if w.culprit != nil {
			return total
		}
		total.all += below.all
		total.aliased += below.aliased
		if total.aliased > maxAliased {
			w.culprit = lastAlias(child)
			return total
		}
	}
	if n.Anchor != "" {
		w.known[n] = total
	}
	return total
}

func (w *weigher) alias(n *yaml.Node) weight {
	if w.within[n.Alias] {
		w.culprit, w.circular = n, true
		return weight{}
	}
	total := w.weigh(n.Alias)
	if total.aliased = total.all; total.aliased > maxAliased && w.culprit == nil {
		w.culprit = n
	}
	return total
}

// lastAlias is the last alias in a node that has one.
func lastAlias(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n
	}
	for i := len(n.Content) - 1; i >= 0; i-- {
		if found := lastAlias(n.Content[i]); found != nil {
			return found
		}
	}
	return nil
}
