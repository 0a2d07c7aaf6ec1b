package files

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"strings"
	"unicode"

	"ambassador/certs"
)

// The reader of PEM (RFC 7468). encoding/pem wants each BEGIN and END on a line of
// its own, at the line's start. Files that were pasted into YAML, exported by
// Windows, joined by cat or kept in an environment variable are often not like
// that, and what they mean is clear nevertheless. So a block is here what is
// between a BEGIN and the END of the same name, wherever they are.

var (
	armorBegin = []byte("-----BEGIN ")
	armorEnd   = []byte("-----END ")
	armorTail  = []byte("-----")
)

var errCut = errors.New("a block (-----BEGIN …) has no end or is damaged: the file is cut short, or still being written")

// parsePEM reads all blocks of a text. It returns an error for a BEGIN that starts
// no complete block: a truncated file must not pass for a shorter one. A line
// that starts with # is a comment, even inside of a block.
func parsePEM(b []byte) ([]*pem.Block, error) {
	text := plainText(b)
	var out []*pem.Block
	for {
		_, rest, found := bytes.Cut(text, armorBegin)
		if !found {
			return out, nil
		}
		label, _, found := bytes.Cut(rest, armorTail)
		if !found || bytes.ContainsRune(label, '\n') {
			return nil, errCut
		}
		end := bytes.Join([][]byte{armorEnd, label, armorTail}, nil)
		body, rest, found := bytes.Cut(rest[len(label):], end) // from the dashes of BEGIN: those of END may be the same
		body = bytes.TrimPrefix(body, armorTail)
		if !found || bytes.Contains(body, armorTail) { // another BEGIN, or another END
			return nil, errCut
		}
		block := &pem.Block{Type: string(label)}
		var err error
		if block.Headers, block.Bytes, err = decodeArmor(body); err != nil {
			return nil, errCut
		}
		out, text = append(out, block), text[len(text)-len(rest)-len(armorTail):] // the dashes may also be those of the next BEGIN
	}
}

// plainText returns a text in UTF-8 with line breaks of \n and without comments.
// It makes line breaks of the escapes that JSON, YAML and shells have for them:
// PEM has no backslash.
func plainText(b []byte) []byte {
	text := strings.NewReplacer("\r\n", "\n", "\r", "\n", `\r\n`, "\n", `\n`, "\n", `\r`, "\n").Replace(string(certs.Text(b)))
	if !strings.Contains(text, "#") {
		return []byte(text)
	}
	var out []byte
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(strings.TrimLeft(line, " \t"), "#") {
			out = append(out, line...)
		}
	}
	return out
}

// decodeArmor reads what is inside of a block: headers (RFC 1421, 4.6), which only
// keys in the old encryption have, and base64.
func decodeArmor(body []byte) (headers map[string]string, b []byte, err error) {
	headers = map[string]string{}
	text := strings.TrimLeftFunc(string(body), unicode.IsSpace)
	for {
		line, rest, _ := strings.Cut(text, "\n")
		key, value, found := strings.Cut(line, ":")
		if !found {
			break
		}
		headers[strings.TrimSpace(key)] = strings.TrimSpace(value)
		text = rest
	}
	b, err = base64.StdEncoding.DecodeString(strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, text))
	return headers, b, err
}
