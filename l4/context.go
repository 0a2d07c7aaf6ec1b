package l4

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// hints are what a client asks of its own connection, where its listener has
// context: true. Zero: it asks for nothing.
type hints struct {
	attempts     int           // of connect.attempts
	timeout      time.Duration // of connect.timeout
	noPreconnect bool          // a connection of its own, not one that is ready
	tag          string        // for the record
}

// contextError is a context that cannot be followed.
type contextError struct{ detail string }

func (e *contextError) Error() string { return "context: " + e.detail }

const (
	maxContext = 1024 // bytes of the whole
	maxTag     = 64
)

// contextKeys are the keys that a context may have. Each reads its own value, and
// says what a good one is.
var contextKeys = []struct {
	name string
	read func(h *hints, value string) bool
	want string
}{
	{"attempts", (*hints).readAttempts, "a number of 1 or more"},
	{"timeout", (*hints).readTimeout, "a duration like 2s or 500ms"},
	{"no_preconnect", (*hints).readNoPreconnect, "true or false"},
	{"tag", (*hints).readTag, fmt.Sprintf("1 to %d visible ASCII characters without quotes, comma and plus", maxTag)},
}

// parseContext reads KEY=VALUE parts with a separator: ',' in a PROXY header and an
// HTTP header, where blanks may stand around it, and '+' behind a user's name. The
// error is a *contextError, which lists the keys.
func parseContext(text string, sep byte) (hints, error) {
	var h hints
	if len(text) > maxContext {
		return hints{}, badContext("%d bytes, and the most is %d", len(text), maxContext)
	}
	if text == "" {
		return h, nil
	}
	seen := make([]bool, len(contextKeys))
	for part := range strings.SplitSeq(text, string(rune(sep))) {
		if sep == ',' {
			part = strings.Trim(part, " \t")
		}
		if err := h.read(part, seen); err != nil {
			return hints{}, err
		}
	}
	return h, nil
}

// read takes one part in. Seen says which keys there were, by their place.
func (h *hints) read(part string, seen []bool) error {
	name, value, ok := strings.Cut(part, "=")
	for i, key := range contextKeys {
		switch {
		case name != key.name:
			continue
		case !ok:
			return badContext("%s has no value; write %s=VALUE, %s", name, name, key.want)
		case seen[i]:
			return badContext("%s is there twice", name)
		case !key.read(h, value):
			return badContext("%s=%q: it must be %s", name, value, key.want)
		}
		seen[i] = true
		return nil
	}
	return badContext("%q is no key", name)
}

func badContext(format string, args ...any) error {
	names := make([]string, len(contextKeys))
	for i, k := range contextKeys {
		names[i] = k.name
	}
	return &contextError{fmt.Sprintf(format, args...) + " (the keys are " + strings.Join(names, ", ") + ")"}
}

func (h *hints) readAttempts(value string) bool {
	n, err := strconv.ParseUint(value, 10, 16)
	h.attempts = int(n)
	return err == nil && n > 0
}

func (h *hints) readTimeout(value string) bool {
	d, err := time.ParseDuration(value)
	h.timeout = d
	return err == nil && d > 0
}

func (h *hints) readNoPreconnect(value string) bool {
	h.noPreconnect = value == "true"
	return value == "true" || value == "false"
}

func (h *hints) readTag(value string) bool {
	h.tag = value
	return value != "" && len(value) <= maxTag &&
		!strings.ContainsFunc(value, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune("\"'`,+", c) })
}

// narrow is c with what the hints ask for, which may be less than c allows and
// never more. The error is a *contextError.
func (h hints) narrow(c ConnectConfig) (ConnectConfig, error) {
	if most := orDefault(c.Attempts, DefaultAttempts); h.attempts > most {
		return c, badContext("attempts=%d, and connect.attempts of the upstream allows %d", h.attempts, most)
	}
	if most := orDefault(c.Timeout, DefaultConnectTimeout); h.timeout > most {
		return c, badContext("timeout=%v, and connect.timeout of the upstream allows %v", h.timeout, most)
	}
	if h.attempts > 0 {
		c.Attempts = h.attempts
	}
	if h.timeout > 0 {
		c.Timeout = h.timeout
	}
	return c, nil
}

// over is h with what it leaves open from other hints.
func (h hints) over(other hints) hints {
	h.attempts, h.timeout = orDefault(h.attempts, other.attempts), orDefault(h.timeout, other.timeout)
	h.noPreconnect = h.noPreconnect || other.noPreconnect
	h.tag = orDefault(h.tag, other.tag)
	return h
}
