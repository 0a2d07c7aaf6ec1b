package config

import (
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

func TestSecretsAreNotPrinted(t *testing.T) {
	f, err := parse(cmdtest.Secretive)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := f.Upstreams[0].Health.Send+f.Upstreams[1].Health.Send+f.Upstreams[2].Health.Send, "AUTH hunter2\nPING\n"+"hunter2 ${YES}"+"hunter2"; got != want {
		t.Errorf("hidden, it is %q, want %q", got, want)
	}
	var b strings.Builder
	if err := f.PrintYAML(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{"# what is beside a secret", "# nobody", "send: '***'", `"$${YES}"`, "/health?***", "path: /plain", "&pw '***'", "send: *pw"} {
		if !strings.Contains(text, want) {
			t.Errorf("it has no %s:\n%s", want, text)
		}
	}
	if strings.Contains(text, "hunter2") {
		t.Errorf("it shows a secret:\n%s", text)
	}
	if _, err := parse(text); err != nil {
		t.Errorf("it does not load: %v", err)
	}
}
