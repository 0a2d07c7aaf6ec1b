package main

import (
	"embed"
	"fmt"
	"slices"
	"strings"
)

// manualFiles holds the manual: one Markdown file for each topic.
//
//go:embed docs/*.md
var manualFiles embed.FS

// topic is a chapter of the manual.
type topic struct{ name, about string }

// topics returns the chapters in the order in which help lists them. A test asserts
// that each has its file.
func topics() []topic {
	return []topic{
		{"install", "packages, systemd, upgrade, uninstall, platforms, changes"},
		{"configuration", "the file: how it is read, and every key with its default"},
		{"starttls", "PostgreSQL, MySQL, LDAP, mail, NNTP, NATS and XMPP"},
		{"egress", "SOCKS5, HTTP CONNECT and redirected programs; rules"},
		{"identities", "certificates: files, step-ca, SPIFFE; whom to trust; TLS from clients"},
		{"resilience", "addresses, balancing, health checks, circuit breakers, preconnected connections"},
		{"operations", "commands, admin API, metrics, logs, reload, drain, systemd, sandbox"},
		{"containers", "the image: build, read-only root, health check, signals"},
		{"kubernetes", "sidecar, probes, Jobs, kube inject, and the manifests that print has"},
		{"troubleshooting", "every reason, and common error messages, with cause and fix"},
		{"sizing", "limits, descriptors, memory, performance"},
		{"security", "what is protected against whom, and what is not"},
	}
}

// manual returns the text of a topic. It returns false if there is no such topic.
func manual(name string) (string, bool) {
	if !slices.ContainsFunc(topics(), func(t topic) bool { return t.name == name }) {
		return "", false
	}
	text, err := manualFiles.ReadFile("docs/" + name + ".md")
	return string(text), err == nil
}

// topicList has a line for each topic, for help.
func topicList() string {
	var b strings.Builder
	for _, t := range topics() {
		fmt.Fprintf(&b, "  %-15s %s\n", t.name, t.about)
	}
	return b.String()
}
