package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// What is printed or logged has texts of clients, servers and files in it. None of them
// may break a line, speak to a terminal, or change the order in which a line is read.
// Whether a character may is for unicode.IsPrint to say: it may be seen, or it is a
// space. The others (controls of ASCII and of Latin-1, directions, line separators, what
// has no width) are escaped, here for every reader.

// Visible is a text on one line, with \n, \x1b, \u202e and the like for what cannot be
// seen. It is for people: a backslash stays one, so that the text cannot be read back.
func Visible(s string) string {
	if !strings.ContainsFunc(s, isHidden) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1: // not UTF-8: a terminal may read it as Latin-1
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case isHidden(r):
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// isHidden says whether a character is escaped. RuneError may be a byte that is none.
func isHidden(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }

// VisibleLines is visible for a text of several lines that are ours.
func VisibleLines(s string) string {
	if !strings.ContainsFunc(s, isHidden) {
		return s
	}
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = Visible(line)
	}
	return strings.Join(lines, "\n")
}

// AppendJSON appends a JSON text in which what cannot be seen is written \uXXXX.
// It stands for the same value: outside its strings JSON has only ASCII.
func AppendJSON(dst, text []byte) []byte {
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		switch {
		case r == utf8.RuneError && n == 1:
			dst = append(dst, `\ufffd`...) // which is how JSON is read
		case r == '\r':
			dst = append(dst, ' ') // in JSON it is a space between values
		case r == '\n' || r == '\t' || unicode.IsPrint(r):
			dst = append(dst, text[:n]...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			dst = fmt.Appendf(dst, `\u%04x\u%04x`, high, low)
		default:
			dst = fmt.Appendf(dst, `\u%04x`, r)
		}
		text = text[n:]
	}
	return dst
}

// hasHidden says whether a JSON text has something that AppendJSON would look at.
func hasHidden(text []byte) bool {
	for _, c := range text {
		if c > '~' || c < ' ' && c != '\n' && c != '\t' {
			return true
		}
	}
	return false
}

// JSONWriter passes JSON texts on, each whole in one Write, as AppendJSON has them.
type JSONWriter struct{ W io.Writer }

func (w JSONWriter) Write(text []byte) (int, error) {
	out := text
	if hasHidden(text) {
		out = AppendJSON(make([]byte, 0, len(text)+64), text)
	}
	if _, err := w.W.Write(out); err != nil {
		return 0, err
	}
	return len(text), nil
}

// WriteJSON prints a value.
func WriteJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(JSONWriter{W: w})
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// WriteAnswer prints JSON that another process has sent.
func WriteAnswer(w io.Writer, text []byte) error {
	if !json.Valid(text) {
		return fmt.Errorf("the answer is no JSON (%s); check --admin", Visible(string(bytes.TrimSpace(text[:min(len(text), 100)]))))
	}
	_, err := JSONWriter{W: w}.Write(text)
	return err
}
