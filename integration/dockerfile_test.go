package integration

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// TestDockerfile proves that the build line of the Dockerfile makes a binary that
// runs where nothing else is: no interpreter, no shared library.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("an ELF binary is made on Linux")
	}
	need(t, "sh")
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^RUN (.*\bgo build .*)$`).FindSubmatch(text)
	if m == nil {
		t.Fatal("the Dockerfile has no line RUN … go build …")
	}
	out := filepath.Join(t.TempDir(), "ambassador")
	line := strings.Replace(string(m[1]), "/out/ambassador", out, 1)
	cmd := exec.Command("sh", "-ec", line)
	cmd.Dir = ".."
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, text)
	}
	f, err := elf.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary wants an interpreter, so it is not static")
		}
	}
	if libs, _ := f.ImportedLibraries(); len(libs) > 0 {
		t.Errorf("the binary wants the libraries %q", libs)
	}
	if text, err := exec.Command(out, "version").CombinedOutput(); err != nil || len(text) == 0 {
		t.Errorf("ambassador version: %v\n%s", err, text)
	}
}
