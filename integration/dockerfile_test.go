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

// TestDockerfileImage proves that the image is what it says: nothing but the
// binary, roots, and folders that its user may write to.
func TestDockerfileImage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, final, ok := strings.Cut(string(text), "\nFROM scratch\n")
	if !ok {
		t.Fatal("the final stage does not begin with nothing")
	}
	for _, line := range []string{
		`COPY --from=build /etc/ssl/certs/ca-certificates\.crt /etc/ssl/certs/ca-certificates\.crt`,
		`COPY --from=build --chown=(\d+:\d+) /out/run/ambassador /run/ambassador`,
		`COPY --from=build /out/tmp /tmp`,
		`COPY --from=build /out/ambassador /ambassador`,
		`ENV RUNTIME_DIRECTORY=/run/ambassador`,
		`USER [1-9]\d*:[1-9]\d*`,
		`ENTRYPOINT \["/ambassador"\]`,
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(final) {
			t.Errorf("the image has no line %s", line)
		}
	}
	owner := regexp.MustCompile(`--chown=(\d+:\d+) /out/run`).FindStringSubmatch(final)
	user := regexp.MustCompile(`(?m)^USER (.*)$`).FindStringSubmatch(final)
	if owner == nil || user == nil || owner[1] != user[1] {
		t.Errorf("the folder of the admin socket belongs to %q, and the image runs as %q", owner, user)
	}
	gomod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(gomod)
	if !strings.Contains(string(text), "FROM golang:"+string(version[1])+" AS build\n") {
		t.Errorf("the image is not built by Go %s, which go.mod wants", version[1])
	}
}

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
