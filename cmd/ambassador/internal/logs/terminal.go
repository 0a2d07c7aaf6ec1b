package logs

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"ambassador/cmd/ambassador/internal/output"
)

// terminal is what a terminal can show.
type terminal struct {
	color bool
	ascii bool // its encoding has no other characters
}

// terminalOf reads the variables of the environment. NO_COLOR and TERM=dumb turn colour
// off; a locale that is not UTF-8 has only ASCII. Without a locale it is that of POSIX.
func terminalOf(env func(string) (string, bool)) terminal {
	get := func(key string) string {
		if env == nil {
			return ""
		}
		value, _ := env(key)
		return value
	}
	locale := get("LC_ALL")
	for _, key := range []string{"LC_CTYPE", "LANG"} {
		if locale == "" {
			locale = get(key)
		}
	}
	locale = strings.ToLower(locale)
	kind := get("TERM")
	return terminal{
		color: get("NO_COLOR") == "" && kind != "" && kind != "dumb",
		ascii: !strings.Contains(locale, "utf-8") && !strings.Contains(locale, "utf8"),
	}
}

// sign says in one character what a line is about.
type sign struct{ char, ascii, color string }

var (
	noted    = sign{"·", "-", faint}
	good     = sign{"✓", "+", green}
	doubtful = sign{"!", "!", yellow}
	bad      = sign{"✗", "x", red}
	again    = sign{"…", "..", faint}
)

// The colours of the log.
const (
	faint  = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	plain  = "\x1b[0m"
)

// withoutColor removes the colours from a line. A line has no other escape sequences.
var withoutColor = strings.NewReplacer(faint, "", red, "", green, "", yellow, "", plain, "")

// line makes one line for a terminal. It is as long as its text: the terminal wraps it,
// and a cause that is cut off would be of no use.
type line struct {
	terminal
	strings.Builder
}

// newLine begins with the time of day and the sign.
func newLine(t terminal, now time.Time, s sign) *line {
	l := &line{terminal: t}
	l.paint(faint, now.Format("15:04:05"))
	char := s.char
	if t.ascii {
		char = s.ascii
	}
	l.WriteByte(' ')
	l.paint(s.color, char)
	return l
}

// add adds text, in which nothing can break the line or control the terminal.
func (l *line) add(text string) {
	text = output.Visible(text)
	if l.ascii {
		text = inASCII(text)
	}
	l.WriteString(text)
}

func (l *line) addf(format string, args ...any) { l.add(fmt.Sprintf(format, args...)) }

// paint adds text in a colour.
func (l *line) paint(color, text string) {
	if !l.color {
		l.add(text)
		return
	}
	l.WriteString(color)
	l.add(text)
	l.WriteString(plain)
}

// end returns the line.
func (l *line) end() []byte { return append([]byte(l.String()), '\n') }

// inASCII replaces our own signs by similar ones, and escapes other characters.
func inASCII(s string) string {
	if !slices.ContainsFunc([]byte(s), func(c byte) bool { return c > '~' }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case r <= '~':
			b.WriteRune(r)
		case r == '→':
			b.WriteString("->")
		case r == '…':
			b.WriteString("...")
		case r == 'µ':
			b.WriteByte('u')
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	return b.String()
}
