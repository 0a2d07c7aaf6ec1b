package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manPage is ambassador(1) in roff (man(7)), generated from the help texts of the
// commands. It has no date, so that a binary always prints the same page.
func manPage(root *cobra.Command) string {
	p := &roff{}
	p.line(`.TH AMBASSADOR 1 "" "ambassador ` + escapeRoff(root.Version) + `" "User Commands"`)
	p.section("NAME")
	p.text("ambassador - " + lowerFirst(root.Short))
	p.section("SYNOPSIS")
	for _, c := range pageCommands(root) {
		p.line(".B " + escapeRoff(c.UseLine()))
		p.line(".br")
	}
	p.section("DESCRIPTION")
	p.paragraphs(root.Long)
	p.section("COMMANDS")
	for _, c := range pageCommands(root) {
		p.command(c)
	}
	p.section("FILES")
	p.item("./ambassador.yaml, /etc/ambassador/ambassador.yaml", "The configuration file that run and check read, where --config names none: the first that exists.")
	p.section("EXIT STATUS")
	p.item("0", "Success; a stop by SIGTERM or SIGINT included.")
	p.item("1", "Failure.")
	p.item("2", "A mistake on the command line or in the configuration.")
	p.line(".P")
	p.text("With COMMAND, run exits with the exit status of COMMAND, and with 128+N if signal N ended it.")
	p.section("SIGNALS")
	p.item("SIGTERM, SIGINT", "Drain and exit. The second one exits at once.")
	p.item("SIGHUP", "Reload the configuration file.")
	p.section("EXAMPLES")
	p.example(root.Example)
	p.section("SEE ALSO")
	p.text("The manual is part of the binary. ambassador help TOPIC prints one of its topics:")
	p.line(".nf")
	p.verbatim(topicList())
	p.line(".fi")
	return p.String()
}

// pageCommands returns the commands on the page, those below print and kube included.
// cobra does not count help as an available command.
func pageCommands(root *cobra.Command) (out []*cobra.Command) {
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() || c.Name() == "help" {
			out = append(out, c)
		}
		if c.IsAvailableCommand() && c.Name() != "completion" {
			out = append(out, pageCommands(c)...)
		}
	}
	return out
}

// roff collects the lines of a page.
type roff struct{ strings.Builder }

func (p *roff) line(s string) { p.WriteString(s + "\n") }

func (p *roff) section(name string) { p.line(".SH " + name) }

// text writes lines that roff fills.
func (p *roff) text(s string) { p.verbatim(strings.TrimSpace(s)) }

// verbatim escapes each line separately. The caller decides whether roff fills the
// lines.
func (p *roff) verbatim(s string) {
	for line := range strings.SplitSeq(strings.TrimRight(s, "\n"), "\n") {
		p.line(escapeRoff(line))
	}
}

func (p *roff) paragraphs(s string) {
	for part := range strings.SplitSeq(strings.TrimSpace(s), "\n\n") {
		p.line(".P")
		p.text(part)
	}
}

// item writes a term and its description.
func (p *roff) item(term, meaning string) {
	p.line(".TP")
	p.line(".B " + escapeRoff(term))
	p.text(meaning)
}

func (p *roff) example(s string) {
	if s == "" {
		return
	}
	p.line(".P")
	p.line(".nf")
	p.verbatim(s)
	p.line(".fi")
}

func (p *roff) command(c *cobra.Command) {
	p.line(".SS " + escapeRoff(strings.TrimPrefix(c.UseLine(), "ambassador ")))
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	p.paragraphs(text)
	c.NonInheritedFlags().VisitAll(p.flag)
	p.example(c.Example)
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && c.Name() == "completion" {
			p.item(sub.CommandPath(), sub.Short+".")
		}
	}
}

func (p *roff) flag(f *pflag.Flag) {
	if f.Hidden || f.Name == "help" {
		return
	}
	term := "--" + f.Name
	if f.Shorthand != "" {
		term = "-" + f.Shorthand + ", " + term
	}
	if f.Value.Type() != "bool" {
		kind, _ := pflag.UnquoteUsage(f)
		term += " " + strings.ToUpper(strings.TrimSuffix(kind, "Array"))
	}
	meaning := f.Usage
	if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && f.DefValue != "0s" {
		meaning += " (default " + f.DefValue + ")"
	}
	p.item(term, meaning+".")
}

// escapeRoff escapes a line of text, so that roff prints it unchanged. The result is
// ASCII, because not every roff reads UTF-8.
func escapeRoff(s string) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\\':
			b.WriteString(`\e`)
		case r == '-':
			b.WriteString(`\-`)
		case i == 0 && (r == '.' || r == '\''):
			b.WriteString(`\&` + string(r))
		case r > '~':
			fmt.Fprintf(&b, `\[u%04X]`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func lowerFirst(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToLower(s[:1]) + s[1:]
}
