// Package kubeinject adds the ambassador as a native sidecar to the pod templates in
// Kubernetes manifests, and removes it again.
//
// It edits the text of a manifest, line by line, at places that it finds in the parsed
// YAML. So comments, order, quotes and blank lines stay as they are, and a document
// without a pod template stays the same bytes. A document in flow style, such as JSON,
// is written in block style first.
//
// Promised: the second injection with the same settings changes nothing; Uninject
// removes what Inject added, and nothing else; both check their result before they
// return it. Not promised: Uninject does not bring back an empty list or mapping, such
// as volumes: [], in whose place something was added, nor flow style.
//
// It reads no files and contacts no cluster.
package kubeinject
