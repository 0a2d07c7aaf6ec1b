package integration

import (
	"encoding/json"
	"fmt"
	"net"
	"regexp"
	"strings"
)

// record is a session's account in the log, as far as tests look at it.
type record struct {
	ID          string  `json:"id"`
	Listener    string  `json:"listener"`
	Client      string  `json:"client"`
	User        string  `json:"user"`
	Rule        string  `json:"rule"`
	Destination string  `json:"destination"`
	SNI         string  `json:"sni"`
	Upstream    string  `json:"upstream"`
	Address     string  `json:"address"`
	Stage       string  `json:"stage"`
	Reason      string  `json:"reason"`
	Cause       string  `json:"cause"`
	Hint        string  `json:"hint"`
	Attempts    int     `json:"attempts"`
	BytesUp     int64   `json:"bytes_up"`
	BytesDown   int64   `json:"bytes_down"`
	Duration    float64 `json:"duration"` // seconds
	FirstClose  string  `json:"first_close"`
	RetryIn     float64 `json:"retry_in"` // seconds
	Truncated   bool    `json:"truncated"`
	Tag         string  `json:"tag"`
	Principal   string  `json:"principal"`
}

// told is what the record says of what happened, and of the fix.
func (r record) told() string { return r.Cause + "; " + r.Hint }

// peer names a session by its client. The client's port may belong to a connection to
// another listener as well, now or a minute ago: the listener tells them apart.
type peer struct {
	listener string // empty: any
	client   string
}

// peerOf is the session of a connection to a listener of p.
func peerOf(p *process, c net.Conn) peer {
	client := c.LocalAddr().String()
	if c.RemoteAddr() == nil { // it was reset before Go could ask for that
		return peer{client: client}
	}
	listener := ""
	re := regexp.MustCompile(`(?m)^listening (\S+) ` + regexp.QuoteMeta(c.RemoteAddr().String()) + `$`)
	if m := re.FindStringSubmatch(p.stdout.String()); m != nil {
		listener = m[1]
	}
	return peer{listener, client}
}

// ending waits for the record of the client in the log, and checks that log,
// metrics and `ambassador why` tell the same story.
func ending(p *process, client peer, stage, reason string) (record, error) {
	rec, err := logged(p, client)
	if err != nil {
		return rec, err
	}
	if rec.Stage != stage || rec.Reason != reason {
		return rec, fmt.Errorf("the log says stage=%s reason=%s cause=%q, want stage=%s reason=%s", rec.Stage, rec.Reason, rec.Cause, stage, reason)
	}
	if err := awaitMetric(p, fmt.Sprintf("ambassador_sessions_total{stage=%s,reason=%s}", stage, reason), 1); err != nil {
		return rec, err
	}
	return rec, why(p, client.client, rec)
}

// logged waits for the log's record of the session of a client.
func logged(p *process, client peer) (record, error) { return loggedAfter(p, client, 0) }

// loggedAfter is logged for what the log has after its first from bytes.
func loggedAfter(p *process, client peer, from int) (record, error) {
	var rec record
	listener := ""
	if client.listener != "" {
		listener = `"listener":"` + client.listener + `",`
	}
	re := regexp.MustCompile(`(?m)^.*` + listener + `"client":"` + regexp.QuoteMeta(client.client) + `".*"reason":"\w+".*$`)
	m, err := p.stderr.awaitAfter(from, re, patience, p.exited)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal([]byte(m[0]), &rec); err != nil {
		return rec, fmt.Errorf("%w in the log line %s", err, m[0])
	}
	return rec, nil
}

// why checks `ambassador why CLIENT`, for people and for programs.
func why(p *process, client string, rec record) error {
	if strings.Count(p.stderr.String(), `"client":"`+client+`"`) > 1 {
		client = rec.ID // another session had the same port
	}
	text, stderr, code, err := ask(p, "why", client)
	if err != nil || code != 0 {
		return fmt.Errorf("ambassador why %s: exit code %d, %v\n%s", client, code, err, stderr)
	}
	for _, want := range []string{rec.Reason, rec.Stage, rec.ID} {
		if !strings.Contains(text, want) {
			return fmt.Errorf("ambassador why %s does not say %q:\n%s", client, want, text)
		}
	}
	if rec.Hint != "" && !strings.HasSuffix(text, rec.Hint[1:]+".\n") { // no general advice follows
		return fmt.Errorf("ambassador why %s does not end with the hint %q:\n%s", client, rec.Hint, text)
	}
	text, stderr, code, err = ask(p, "why", client, "--json")
	if err != nil || code != 0 {
		return fmt.Errorf("ambassador why --json: exit code %d, %v\n%s", code, err, stderr)
	}
	if !regexp.MustCompile(`"reason":\s*"` + rec.Reason + `"`).MatchString(text) {
		return fmt.Errorf("ambassador why --json does not say reason %s:\n%s", rec.Reason, text)
	}
	return nil
}

// sessionID waits until a client's session is listed among the live ones.
func sessionID(p *process, client string) (id string, err error) {
	re := regexp.MustCompile(`\{[^{}]*"client":\s*"` + regexp.QuoteMeta(client) + `"[^{}]*\}`)
	err = eventually(patience, func() error {
		text, status, err := get(p, "/v1/sessions")
		if err != nil || status != 200 {
			return fmt.Errorf("GET /v1/sessions: status %d, %v", status, err)
		}
		var rec record
		if err := json.Unmarshal([]byte(re.FindString(text)), &rec); err != nil {
			return fmt.Errorf("GET /v1/sessions does not list %s:\n%s", client, text)
		}
		id = rec.ID
		return nil
	})
	return id, err
}
