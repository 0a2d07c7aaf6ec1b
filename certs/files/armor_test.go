package files

import (
	"bytes"
	"encoding/binary"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
)

// forms are what happens to PEM on its way to us. Each keeps its meaning.
var forms = []struct {
	name string
	make func(text string) []byte
}{
	{"as it is", func(s string) []byte { return []byte(s) }},
	{"byte order mark", func(s string) []byte { return []byte("\ufeff" + s) }},
	{"CR LF", func(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", "\r\n")) }},
	{"CR", func(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", "\r")) }},
	{"UTF-16 little endian", func(s string) []byte { return inUTF16(s, binary.LittleEndian) }},
	{"UTF-16 big endian", func(s string) []byte { return inUTF16(s, binary.BigEndian) }},
	{"joined", func(s string) []byte { return []byte(strings.ReplaceAll(s, "-----\n-----", "----------")) }},
	{"joined by the same dashes", func(s string) []byte { return []byte(strings.ReplaceAll(s, "-----\n-----", "-----")) }},
	{`\n`, func(s string) []byte { return []byte(`"` + strings.ReplaceAll(s, "\n", `\n`) + `"`) }},
	{`\r\n`, func(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", `\r\n`)) }},
	{"one line", func(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", "")) }},
	{"one line with spaces", func(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", " ")) }},
	{"indented", func(s string) []byte { return []byte("  " + strings.ReplaceAll(s, "\n", "\n\t  ")) }},
	{"trailing spaces", func(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", " \t\n")) }},
	{"empty lines", func(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", "\n\n")) }},
	{"no-break spaces", func(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", "\n\u00a0")) }},
	{"comments", func(s string) []byte {
		return []byte("# a root that was removed:\n# " + strings.ReplaceAll(s, "\n", "\n  # ") + "\n" + s)
	}},
	{"text around it", func(s string) []byte { return []byte("subject=CN = x\n" + s + "\nEnde") }},
}

func inUTF16(s string, order binary.AppendByteOrder) []byte {
	b := order.AppendUint16(nil, 0xfeff)
	for _, u := range utf16.Encode([]rune(s)) {
		b = order.AppendUint16(b, u)
	}
	return b
}

// Each form of a pair and its roots is read as what it was made of.
func TestPEMInEveryForm(t *testing.T) {
	one, two := newPair(t, 1, time.Hour), newPair(t, 2, time.Hour)
	path := filepath.Join(t.TempDir(), "all.pem")
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			write(t, path, form.make(string(concat(one.cert, two.cert, one.key))))
			cert, roots, err := Load(Files{Cert: path, Key: path, CA: path})
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, concat(one.cert, two.cert))
			_, want, err := Load(Files{CA: path})
			if err != nil || len(cert.Certificate) != 2 || cert.Leaf.SerialNumber.Int64() != 1 || !roots.Pool.Equal(want.Pool) {
				t.Errorf("%d certificates, leaf %x, %v", len(cert.Certificate), cert.Leaf.SerialNumber, err)
			}
		})
	}
}

// What is not complete is no shorter file, in whatever form.
func TestPEMIsNotCut(t *testing.T) {
	one, two := string(newPair(t, 1, time.Hour).cert), string(newPair(t, 2, time.Hour).cert)
	for name, text := range map[string]string{
		"no end":            one + two[:len(two)/2],
		"end of another":    one + strings.Replace(two, "END CERTIFICATE", "END PRIVATE KEY", 1),
		"begin in a block":  one[:len(one)/2] + "\n" + two,
		"no base64":         one + strings.Replace(two, "A", "!", 1),
		"a comment cuts it": one + strings.Replace(two, "-----END", "# -----END", 1),
		"begin of nothing":  one + "-----BEGIN CERTIFICATE\n",
	} {
		for _, form := range forms {
			if blocks, err := parsePEM(form.make(text)); err == nil && !(name == "a comment cuts it" && len(blocks) == 2) {
				t.Errorf("%s, %s: %d blocks and no error", name, form.name, len(blocks))
			}
		}
	}
}

// strictPEM reads PEM with encoding/pem; false if it skips something.
func strictPEM(b []byte) (out []*pem.Block, complete bool) {
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			return out, !bytes.Contains(b, armorBegin)
		}
		if bytes.Count(b[:len(b)-len(rest)], armorBegin) != 1 {
			return nil, false
		}
		out, b = append(out, block), rest
	}
}

func sameBlocks(a, b []*pem.Block) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Type != b[i].Type || !bytes.Equal(a[i].Bytes, b[i].Bytes) || !maps.Equal(a[i].Headers, b[i].Headers) {
			return false
		}
	}
	return true
}

// FuzzParsePEM: what encoding/pem reads completely is read alike; and a text is read
// alike in every form.
func FuzzParsePEM(f *testing.F) {
	p := newPair(f, 1, time.Hour)
	f.Add(concat(p.cert, p.key), uint8(0))
	f.Add([]byte("-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n"), uint8(3))
	f.Add([]byte("-----BEGIN X-----\n-----END X-----"), uint8(1))
	f.Add([]byte("-----BEGIN X----------END X-----"), uint8(2))
	f.Add([]byte("-----BEGIN X-----\n-----END X-----"), uint8(7))
	f.Add([]byte("-----BEGIN X------END X-----"), uint8(0))
	f.Add([]byte("-----BEGIN X-----\n\\nAAAA#\n-----END X-----"), uint8(4))
	for i, form := range forms {
		f.Add(form.make(string(p.cert)), uint8(i))
	}
	names, _ := filepath.Glob("testdata/*.crt")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint8(7))
	}
	f.Fuzz(func(t *testing.T, b []byte, n uint8) {
		got, err := parsePEM(b)
		if text := plainText(b); err == nil && bytes.Count(text, armorBegin) != len(got) {
			t.Errorf("%d blocks of %d", len(got), bytes.Count(text, armorBegin))
		}
		if !bytes.ContainsAny(b, "#\\\r") && bytes.Equal(plainText(b), b) {
			if want, complete := strictPEM(b); complete && !(err == nil && sameBlocks(got, want)) {
				t.Errorf("%q: encoding/pem reads %d blocks, parsePEM %d, %v", b, len(want), len(got), err)
			}
		}
		if err != nil {
			return
		}
		var clean bytes.Buffer
		for _, block := range got {
			if len(block.Headers) > 0 || strings.ContainsAny(block.Type, ":-#\\\r") || strings.TrimSpace(block.Type) != block.Type || !isASCII(block.Type) {
				return // not every form keeps these apart from what is around them
			}
			pem.Encode(&clean, block)
		}
		form := forms[int(n)%len(forms)]
		if again, err := parsePEM(form.make(clean.String())); err != nil || !sameBlocks(again, got) {
			t.Errorf("%s: %d blocks of %d, %v", form.name, len(again), len(got), err)
		}
	})
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}
