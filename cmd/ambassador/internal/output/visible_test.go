package output

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"":                      "",
		`a b\n "ü" 日本`:          `a b\n "ü" 日本`,
		"a\nb\tc\x1b[31mr\x00":  `a\nb\tc\x1b[31mr\x00`,
		"\u009b31m\x9b31m":      `\u009b31m\x9b31m`,
		"a\u202eb\u2028c\ufeff": `a\u202eb\u2028c\ufeff`,
		"\U000e0041\u00a0":      `\U000e0041\u00a0`,
	} {
		if got := Visible(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	if got, want := VisibleLines("a\x1b\nb\tc\n"), "a\\x1b\nb\\tc\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	cmdtest.MustBeVisible(t, "visible", Visible(cmdtest.Evil))
}

func TestVisibleJSON(t *testing.T) {
	for in, want := range map[string]string{
		`{"a": "ü"}`:       `{"a": "ü"}`,
		"{\n\t\"a\":\r1}":  "{\n\t\"a\": 1}",
		"\"\u0085\u202e\"": `"\u0085\u202e"`,
		"\"\U000e0041\"":   `"\udb40\udc41"`,
		"\"\x7f\xff\x1b\"": `"\u007f\ufffd\u001b"`,
	} {
		var out bytes.Buffer
		if n, err := (JSONWriter{W: &out}).Write([]byte(in)); n != len(in) || err != nil || out.String() != want {
			t.Errorf("%q: %d, %v, %s, want %s", in, n, err, &out, want)
		}
	}
}

// What is printed is what was put in, and can be seen.
func FuzzVisibleJSON(f *testing.F) {
	f.Add(cmdtest.Evil)
	f.Add("\U0001f600\ufffd\\ud800\"<&>")
	f.Fuzz(func(t *testing.T, s string) {
		plain, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var want string
		if err := json.Unmarshal(plain, &want); err != nil { // another string than s where that is no UTF-8
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := WriteJSON(&out, s); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string][]byte{"appendVisibleJSON": AppendJSON(nil, plain), "writeJSON": out.Bytes()} {
			var got string
			if err := json.Unmarshal(text, &got); err != nil || got != want {
				t.Errorf("%s: %s is %q, %v; want %q", name, text, got, err, want)
			}
			cmdtest.OnlyVisible(t, name, strings.TrimSuffix(string(text), "\n"))
		}
		cmdtest.OnlyVisible(t, "visible", Visible(s))
	})
}
