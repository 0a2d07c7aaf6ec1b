package page

import (
	"cmp"
	"encoding/json"
	"strings"
	"time"
)

// logRow is a line of the log for people.
type logRow struct {
	State string // warn or bad, by the level
	Time  string // of the day
	Event string
	Text  string // the rest in words
	Raw   string // the line; empty if Text is the line
	Key   string // tells lines apart
}

func logRowsOf(lines []string) (rows []logRow) {
	for _, line := range lines {
		rows = append(rows, logRowOf(line))
	}
	return rows
}

// pair is a key of a line of the log, with its value as text.
type pair struct{ key, value string }

// logRowOf reads a line of the JSON log. Another line, of the text log, is for people as
// it is.
func logRowOf(line string) logRow {
	pairs, ok := pairsOf(line)
	if !ok {
		return logRow{Text: line}
	}
	row, rest := logRow{Raw: line}, []pair{}
	for _, p := range pairs {
		switch p.key {
		case "time":
			row.Key, row.Time = p.value, clockOf(p.value)
		case "level":
			row.State = map[string]string{"WARN": "warn", "ERROR": "bad"}[p.value]
		case "msg":
			row.Event = p.value
		default:
			rest = append(rest, p)
		}
	}
	row.Key += " " + row.Event
	if row.Text = words(rest); row.Event == "session" {
		row.Text = sessionWords(rest)
	}
	return row
}

// pairsOf reads the keys of a JSON object, in their order. It returns false if the line
// is not an object.
func pairsOf(line string) (out []pair, ok bool) {
	d := json.NewDecoder(strings.NewReader(line))
	if begin, err := d.Token(); err != nil || begin != json.Delim('{') {
		return nil, false
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, false
		}
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return nil, false
		}
		text := string(value)
		if json.Unmarshal(value, &text) != nil { // not a string: a number is its own text
			text = string(value)
		}
		out = append(out, pair{key.(string), text}) // the keys of an object are strings
	}
	_, err := d.Token()
	return out, err == nil
}

// clockOf is the time of the day, as the log has it.
func clockOf(text string) string {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return text
	}
	return t.Format("15:04:05")
}

func words(pairs []pair) string {
	var all []string
	for _, p := range pairs {
		all = append(all, p.key+" "+p.value)
	}
	return strings.Join(all, ", ")
}

// sessionWords describes the record of a session: "K7QX-4 refused: 127.0.0.1:36100 to
// mail: connection refused".
func sessionWords(pairs []pair) string {
	of := map[string]string{}
	for _, p := range pairs {
		of[p.key] = p.value
	}
	text := joined(of["id"], of["reason"]+":", of["user"], of["client"], "to", cmp.Or(of["destination"], of["upstream"], "nothing"))
	if of["cause"] != "" {
		text += ": " + of["cause"]
	}
	return text
}
