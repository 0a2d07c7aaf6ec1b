package output

import (
	"strings"
	"unicode/utf8"
)

// Screen is the terminal that a report is for. The zero value is a file or a pipe, which
// gets everything, without colour.
type Screen struct {
	// Width is the columns of the terminal; tables are cut to it. If zero, nothing is.
	Width int
	// Color means that states are written in colour.
	Color bool
}

const (
	columnGap = 2 // spaces between columns
	// leastColumn is the width to which a column is cut at most.
	leastColumn = 8
)

// Table prints rows in columns, the first of them the heads. Nothing from outside can
// break a row or speak to the terminal. A table that is wider than the screen has its
// widest columns cut, with … at the end of the cells.
func (p *Report) Table(rows [][]string) {
	cells := make([][]string, len(rows))
	var widths []int
	for i, row := range rows {
		for j, cell := range row {
			if cell = Visible(cell); cell == "" {
				cell = "-"
			}
			cells[i] = append(cells[i], cell)
			if j == len(widths) {
				widths = append(widths, 0)
			}
			widths[j] = max(widths[j], utf8.RuneCountInString(cell))
		}
	}
	p.fit(rows, widths)
	for i, row := range cells {
		for j, cell := range row {
			cell = cut(cell, widths[j])
			pad := strings.Repeat(" ", widths[j]-utf8.RuneCountInString(cell)+columnGap)
			if i > 0 && j < len(rows[0]) && isState(rows[0][j]) {
				cell = p.Paint(cell)
			}
			p.WriteString(cell)
			if j < len(row)-1 {
				p.WriteString(pad)
			}
		}
		p.WriteString("\n")
	}
}

// isWhole reports whether a column with that head is never cut: it is the value of a flag.
func isWhole(head string) bool { return head == "ADMIN" }

// fit makes the widest columns narrower until the table fits the screen.
func (p *Report) fit(rows [][]string, widths []int) {
	if p.Width == 0 || len(widths) == 0 {
		return
	}
	total := columnGap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for total > p.Width {
		widest := -1
		for j, w := range widths {
			whole := j < len(rows[0]) && isWhole(rows[0][j])
			if w > leastColumn && !whole && (widest < 0 || w > widths[widest]) {
				widest = j
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
		total--
	}
}

// cut shortens a text to n characters.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// isState reports whether a column with that head has states, which are painted.
func isState(head string) bool { return head == "STATE" || head == "REASON" }

// shades are the colours of states, by the words that they begin with.
var shades = []struct{ word, code string }{
	{"ready, but", "33"}, {"ready", "32"}, {"ok, but", "33"}, {"ok", "32"}, {"healthy", "32"}, {"closed", "32"}, {"probe", "32"},
	{"warning", "33"}, {"draining", "33"}, {"not tried", "33"}, {"unknown", "33"}, {"breaker half open", "33"}, {"idle", "32"}, {"-", ""},
}

// Paint writes a state in its colour: green for good, yellow for what may become good or
// bad, red for the rest.
func (p *Report) Paint(state string) string {
	if !p.Color || state == "" || state[0] >= '0' && state[0] <= '9' { // a count is no state
		return state
	}
	code := "31"
	for _, s := range shades {
		if strings.HasPrefix(state, s.word) {
			code = s.code
			break
		}
	}
	if code == "" {
		return state
	}
	return "\x1b[" + code + "m" + state + "\x1b[0m"
}
