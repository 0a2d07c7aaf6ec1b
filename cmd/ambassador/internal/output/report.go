package output

import (
	"fmt"
	"strings"
	"time"
)

// Report collects lines and tables for people.
type Report struct {
	strings.Builder
	Now time.Time // in its zone times are written
	Screen
}

// Linef adds a line; what it is made of cannot add another.
func (p *Report) Linef(format string, args ...any) {
	p.WriteString(Visible(fmt.Sprintf(format, args...)) + "\n")
}

// When is a time to the second, in the zone of now.
func (p *Report) When(t time.Time) string {
	return t.In(p.Now.Location()).Format("2006-01-02 15:04:05 MST")
}

// Ago is how long ago t was, behind a space; empty for nil.
func (p *Report) Ago(t *time.Time) string {
	if t == nil {
		return ""
	}
	return " " + Age(p.Now.Sub(*t)) + " ago"
}

// In says how far off t is: "in 7d16h", "expired 2h ago".
func (p *Report) In(t time.Time) string {
	if d := t.Sub(p.Now); d > 0 {
		return "in " + Age(d)
	}
	return "expired " + Age(p.Now.Sub(t)) + " ago"
}

// Age is a duration for people: its two largest units.
func Age(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(d, 0)/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
}

// Bytes is a size for people: "512 B", "1.5 KiB".
func Bytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n)/1024, "KMGTPE"
	for v >= 1023.95 { // which would be rounded to 1024.0
		v, units = v/1024, units[1:]
	}
	return fmt.Sprintf("%.1f %ciB", v, units[0])
}

// Plural counts things: "1 session", "2 sessions".
func Plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
