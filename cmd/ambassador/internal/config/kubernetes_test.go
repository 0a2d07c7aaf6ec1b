package config

import (
	"slices"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/kubernetes"
	"ambassador/l4/lookup"
)

func TestServicesReachTheServer(t *testing.T) {
	f, err := parse(withEndpoint(`{kubernetes: "default/db:5432", weight: 3, priority: 2}`) + "identities: {me: {kubernetes: default/client}}")
	if err != nil {
		t.Fatal(err)
	}
	parts := noParts()
	parts.Discover = func(s kubernetes.Service) *lookup.Discovery { return &lookup.Discovery{Host: s.Host()} }
	cfg, err := f.ServerConfig(parts)
	if err != nil {
		t.Fatal(err)
	}
	e := cfg.Upstreams[0].Endpoints[0]
	if e.Discovery == nil || e.Discovery.Host != "db.default.svc" || e.Address != "kubernetes:default/db:5432" || e.Weight != 3 || e.Priority != 2 {
		t.Errorf("%+v", e)
	}
	if want := []string{"identities.me.kubernetes", "upstreams.u.endpoints[0].kubernetes"}; !slices.Equal(f.KubernetesKeys(), want) {
		t.Errorf("keys %q, want %q", f.KubernetesKeys(), want)
	}
	other, err := parse(withEndpoint(`{kubernetes: "default/db:5432"}`) + "identities: {me: {kubernetes: default/other}}")
	if err != nil {
		t.Fatal(err)
	}
	if f.Identities[0].Key() == other.Identities[0].Key() {
		t.Error("another Secret is no other identity")
	}
}

// A doubt about TLS at a port that begins in plaintext is one about a Service's port, too.
func TestDoubtsAboutServices(t *testing.T) {
	f, err := parse(withEndpoint(`{kubernetes: "default/db:5432"}`) + "    tls: {}\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(f.Doubts(), "; "); !strings.Contains(got, "set starttls: postgres if this is one") {
		t.Errorf("doubts: %q", got)
	}
}
