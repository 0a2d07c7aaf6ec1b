package certs

import (
	"bytes"
	"encoding/binary"
	"unicode/utf16"
)

// Byte order marks. Editors and shells of Windows write them.
const (
	markUTF8    = "\xef\xbb\xbf"
	markUTF16LE = "\xff\xfe"
	markUTF16BE = "\xfe\xff"
)

// Text returns the content of a text file in UTF-8: it removes a byte order mark,
// and decodes UTF-16 that begins with one. Other content is returned as it is. The
// line breaks are not changed.
func Text(b []byte) []byte {
	for _, form := range []struct {
		mark  string
		order binary.ByteOrder
	}{{markUTF8, nil}, {markUTF16LE, binary.LittleEndian}, {markUTF16BE, binary.BigEndian}} {
		rest, marked := bytes.CutPrefix(b, []byte(form.mark))
		switch {
		case !marked:
		case form.order == nil:
			return rest
		case len(rest)%2 == 0: // else it is no UTF-16
			return fromUTF16(rest, form.order)
		}
	}
	return b
}

// fromUTF16 replaces invalid surrogates by U+FFFD.
func fromUTF16(b []byte, order binary.ByteOrder) []byte {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = order.Uint16(b[2*i:])
	}
	return []byte(string(utf16.Decode(units)))
}
