package preface

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Hints are what a client asks for its own connection, where its listener has
// context: true. The zero value asks for nothing.
type Hints struct {
	Attempts     int           // in place of connect.attempts
	Timeout      time.Duration // in place of connect.timeout
	NoPreconnect bool          // a new connection, not a preconnected one
	Tag          string        // for the record
	Trace        Traceparent   // the trace that the session belongs to
}

const (
	maxHints = 1024 // bytes of the whole
	maxTag   = 64
)

// traceparent is the key of Hints.Trace. By the standard (W3C Trace Context, section 4.3)
// a bad value, or a second one, is as none, and no reason to refuse the client.
const traceparent = "traceparent"

// hintKeys are the keys of hints. Each reads its own value and says what a good one is.
var hintKeys = []struct {
	name string
	read func(h *Hints, value string) bool
	want string
}{
	{"attempts", (*Hints).readAttempts, "a number of 1 or more"},
	{"timeout", (*Hints).readTimeout, "a duration like 2s or 500ms"},
	{"no_preconnect", (*Hints).readNoPreconnect, "true or false"},
	{traceparent, (*Hints).readTraceparent, "a traceparent of W3C Trace Context"},
	{"tag", (*Hints).readTag, fmt.Sprintf("1 to %d visible ASCII characters without quotes, comma and plus", maxTag)},
}

// parseHints reads KEY=VALUE parts with a separator: ',' in a PROXY header and an HTTP
// header, where blanks may surround it, and '+' behind a user's name. The error is an
// *Error, which lists the keys.
func parseHints(text string, sep byte) (Hints, error) {
	var h Hints
	if len(text) > maxHints {
		return Hints{}, badHints("%d bytes, and the most is %d", len(text), maxHints)
	}
	if text == "" {
		return h, nil
	}
	seen := make([]bool, len(hintKeys))
	for part := range strings.SplitSeq(text, string(rune(sep))) {
		if sep == ',' {
			part = strings.Trim(part, " \t")
		}
		if err := h.read(part, seen); err != nil {
			return Hints{}, err
		}
	}
	return h, nil
}

// read reads one part. Seen has the keys before it, by their index.
func (h *Hints) read(part string, seen []bool) error {
	name, value, ok := strings.Cut(part, "=")
	for i, key := range hintKeys {
		switch {
		case name != key.name:
			continue
		case name == traceparent && seen[i]:
			h.Trace = Traceparent{}
			return nil
		case !ok:
			return badHints("%s has no value; write %s=VALUE, %s", name, name, key.want)
		case seen[i]:
			return badHints("%s is there twice", name)
		case !key.read(h, value):
			return badHints("%s=%q: it must be %s", name, value, key.want)
		}
		seen[i] = true
		return nil
	}
	return badHints("%q is no key", name)
}

func badHints(format string, args ...any) error {
	names := make([]string, len(hintKeys))
	for i, k := range hintKeys {
		names[i] = k.name
	}
	return malformed("context: %s (the keys are %s)", fmt.Sprintf(format, args...), strings.Join(names, ", "))
}

func (h *Hints) readAttempts(value string) bool {
	n, err := strconv.ParseUint(value, 10, 16)
	h.Attempts = int(n)
	return err == nil && n > 0
}

func (h *Hints) readTimeout(value string) bool {
	d, err := time.ParseDuration(value)
	h.Timeout = d
	return err == nil && d > 0
}

func (h *Hints) readNoPreconnect(value string) bool {
	h.NoPreconnect = value == "true"
	return value == "true" || value == "false"
}

func (h *Hints) readTag(value string) bool {
	h.Tag = value
	return value != "" && len(value) <= maxTag &&
		!strings.ContainsFunc(value, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune("\"'`,+", c) })
}

func (h *Hints) readTraceparent(value string) bool {
	h.Trace = ParseTraceparent(value)
	return true
}

// Within is nil if the hints ask for no more than so many attempts and that time. The
// error is an *Error.
func (h Hints) Within(attempts int, timeout time.Duration) error {
	switch {
	case h.Attempts > attempts:
		return badHints("attempts=%d, and connect.attempts of the upstream allows %d", h.Attempts, attempts)
	case h.Timeout > timeout:
		return badHints("timeout=%v, and connect.timeout of the upstream allows %v", h.Timeout, timeout)
	}
	return nil
}

// Over is h, with what it leaves open taken from other hints.
func (h Hints) Over(other Hints) Hints {
	h.Attempts, h.Timeout = cmp.Or(h.Attempts, other.Attempts), cmp.Or(h.Timeout, other.Timeout)
	h.NoPreconnect = h.NoPreconnect || other.NoPreconnect
	h.Tag, h.Trace = cmp.Or(h.Tag, other.Tag), cmp.Or(h.Trace, other.Trace)
	return h
}
