package preface

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// httpHead is the head of an HTTP/1 request, without the body.
type httpHead struct {
	method, target, version string
	major, minor            int
	fields                  []httpField
}

// httpField is a header of a request.
type httpField struct{ name, value string }

// maxHTTPFields bounds the headers of a request, as common servers do.
const maxHTTPFields = 100

// headError is a head that RFC 9112 does not allow. It quotes no header, which may
// contain a password.
type headError struct{ detail string }

func (e *headError) Error() string { return e.detail }

// readHTTPHead reads a head and nothing of what follows it. It is as strict as RFC 9112,
// which net/http's ReadRequest is not: no space before a colon, no header that
// continues on the next line, no control characters. It allows what section 2.2
// recommends: one empty line before the request, and lines that end in LF alone. The
// caller bounds the size. The error is a *headError, or that of in; head has what was
// read before it.
func readHTTPHead(in *bufio.Reader) (head httpHead, err error) {
	line, err := readHTTPLine(in)
	if err == nil && line == "" {
		line, err = readHTTPLine(in)
	}
	if err != nil {
		return head, err
	}
	if err := head.begin(line); err != nil {
		return head, err
	}
	for {
		line, err := readHTTPLine(in)
		if err != nil || line == "" {
			return head, err
		}
		if err := head.add(line); err != nil {
			return head, err
		}
	}
}

// readHTTPLine reads a line, without its end.
func readHTTPLine(in *bufio.Reader) (string, error) {
	line, err := in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		long := bytes.Clone(line)
		for errors.Is(err, bufio.ErrBufferFull) {
			line, err = in.ReadSlice('\n')
			long = append(long, line...)
		}
		line = long
	}
	if err != nil {
		return "", err
	}
	line = line[:len(line)-1]
	return string(bytes.TrimSuffix(line, []byte("\r"))), nil
}

// begin reads the request line.
func (h *httpHead) begin(line string) error {
	method, rest, _ := strings.Cut(line, " ")
	target, version, _ := strings.Cut(rest, " ")
	major, minor, ok := http.ParseHTTPVersion(version)
	if !ok || !isToken(method) || target == "" || strings.ContainsFunc(target, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return &headError{fmt.Sprintf("the request line is malformed: %.100q", line)}
	}
	h.method, h.target, h.version, h.major, h.minor = method, target, version, major, minor
	return nil
}

// add reads a header.
func (h *httpHead) add(line string) error {
	bad := func(what string) error { return &headError{fmt.Sprintf("header %d %s", len(h.fields)+1, what)} }
	name, value, colon := strings.Cut(line, ":")
	value = strings.Trim(value, " \t")
	switch {
	case len(h.fields) == maxHTTPFields:
		return &headError{fmt.Sprintf("it has more than %d headers", maxHTTPFields)}
	case line[0] == ' ' || line[0] == '\t':
		return bad("begins with a space: a header must be on one line")
	case !colon:
		return bad("is malformed: it has no colon")
	case strings.HasSuffix(name, " ") || strings.HasSuffix(name, "\t"):
		return bad("has a space before its colon; remove it")
	case !isToken(name):
		return bad("has a name that is empty or has characters that are not allowed")
	case strings.ContainsFunc(value, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }):
		return bad("has control characters")
	}
	h.fields = append(h.fields, httpField{name, value})
	return nil
}

// values are the values of all headers of a name.
func (h *httpHead) values(name string) (out []string) {
	for _, f := range h.fields {
		if strings.EqualFold(f.name, name) {
			out = append(out, f.value)
		}
	}
	return out
}

// checkHost says what is wrong with Host: HTTP/1.1 must have one, HTTP/1.0 may. It does
// not compare it with the target.
func (h *httpHead) checkHost() error {
	switch hosts := h.values("Host"); {
	case len(hosts) == 0 && h.minor > 0:
		return &headError{fmt.Sprintf("%s without Host; send one, or speak HTTP/1.0", h.version)}
	case len(hosts) > 1:
		return &headError{"it has Host more than once"}
	case len(hosts) == 1 && strings.ContainsFunc(hosts[0], func(c rune) bool { return !isHostByte(c) }):
		return &headError{"Host has characters that are not allowed"}
	}
	return nil
}

// checkNoBody says why there is, or may be, a body.
func (h *httpHead) checkNoBody() error {
	lengths := h.values("Content-Length")
	switch {
	case len(lengths) > 1:
		return &headError{"it has Content-Length more than once"}
	case len(lengths) == 1 && lengths[0] != "0", len(h.values("Transfer-Encoding")) > 0:
		return &headError{"it has a body (Content-Length, Transfer-Encoding), which has no meaning there"}
	}
	return nil
}

// isToken says whether s is a token of RFC 9110, section 5.6.2.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return !isAlphanumeric(c) && (c > 0x7f || !strings.ContainsRune("!#$%&'*+-.^_`|~", c))
	})
}

// isHostByte says whether a Host may have c: what RFC 3986 allows in a host, and the
// colon of a port.
func isHostByte(c rune) bool {
	return isAlphanumeric(c) || c < 0x7f && strings.ContainsRune("-._~%!$&'()*+,;=:[]", c)
}

func isAlphanumeric(c rune) bool {
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}
