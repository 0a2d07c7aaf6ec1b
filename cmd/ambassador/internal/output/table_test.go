package output

import (
	"strings"
	"testing"
)

// A table is cut to the screen at its widest columns, and only states are coloured.
func TestTableOnAScreen(t *testing.T) {
	rows := [][]string{{"NAME", "CAUSE", "STATE"}, {"a", "a long cause of a failure", "healthy for 3s"}, {"b", "", "unhealthy"}, {"c", "ok", "12 destinations"}}
	p := &Report{Screen: Screen{Width: 37, Color: true}}
	p.Table(rows)
	want := "NAME  CAUSE           STATE\n" +
		"a     a long cause …  \x1b[32mhealthy for 3s\x1b[0m\n" +
		"b     -               \x1b[31munhealthy\x1b[0m\n" +
		"c     ok              12 destinations\n"
	if got := p.String(); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	plain := &Report{}
	plain.Table(rows)
	if got := plain.String(); strings.ContainsAny(got, "\x1b…") || !strings.Contains(got, "a long cause of a failure") {
		t.Errorf("into a pipe: %s", got)
	}
}

// What is given to a flag is never cut, however narrow the screen is.
func TestAdminIsNeverCut(t *testing.T) {
	const admin = "unix:/run/user/1000/ambassador/4711.sock"
	p := &Report{Screen: Screen{Width: 60}}
	p.Table([][]string{{"PID", "LISTENERS", "ADMIN"}, {"4711", "postgres=127.0.0.1:5432 redis=127.0.0.1:6379", admin}})
	if got := p.String(); !strings.Contains(got, admin+"\n") || !strings.Contains(got, "postgres…") && !strings.Contains(got, "…  unix:") {
		t.Errorf("%s", got)
	}
}
