package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/logs"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/report"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

// whySessions is how many sessions of one client `why` tells about: a port is
// used again sooner or later, and the newest are meant.
const whySessions = 5

// story is a session with what to do about its ending.
type story struct {
	outcome.Record
	Admin  string `json:"admin,omitempty"` // of its process, if several were asked
	Live   bool   `json:"live"`
	Advice string `json:"advice"`
	// AllowRule and AllowFlag are what would allow a session that the rules refused: a rule
	// for the listener, and the same as a flag of socks5.
	AllowRule string `json:"allow_rule,omitempty"`
	AllowFlag string `json:"allow_flag,omitempty"`
}

func (a *commands) whyCommand() *cobra.Command {
	last := false
	cmd := a.clientCommand("why ADDR|ID|NAME", "Tell how a connection ended, by its client's own address",
		"  ambassador why 127.0.0.1:40000\n  ambassador why 40000\n  ambassador why db.internal:5432 --last\n  ambassador why --last\n  ambassador why K7QX-42 --json",
		func(cmd *cobra.Command, args []string) error {
			if last && len(args) == 0 {
				return nil
			}
			return oneClient(cmd, args)
		},
		func(ctx context.Context, f *adminFlags, args []string) error { return a.why(ctx, f, args, last) })
	cmd.Long = `Tell how a connection ended, what was seen, and what can be done.

ADDR is the client's own address: ADDR:PORT, ADDR, or PORT alone, as the
application, ss or netstat show it. ID is a session's id from the log. NAME is its
tag, its user, or its destination or upstream: HOST:PORT, HOST or NAME.
If several match, the newest are printed first. Without an argument, --last explains the
last session that failed.`
	cmd.Flags().BoolVar(&last, "last", false, "only the newest; without an argument, the newest that failed")
	a.completes(cmd, "", allIDs)
	return cmd
}

// oneClient wants the argument of `why`.
func oneClient(_ *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return errors.New("which connection? give the client's own address or port, or a session's id, like `ambassador why 127.0.0.1:40000`; `ambassador why --last` tells of the last that failed, and `ambassador sessions --recent` lists them")
	case 1:
		return nil
	}
	return fmt.Errorf("unexpected %q: one connection at a time", args[1])
}

// why asks every process. Without args it explains the last failed session.
func (a *commands) why(ctx context.Context, f *adminFlags, args []string, last bool) error {
	clients, err := f.clients(ctx, a)
	if err != nil {
		return err
	}
	want := ""
	if len(args) > 0 {
		want = args[0]
	}
	found, total, failed := a.allStories(ctx, clients, want)
	switch {
	case len(found) == 0 && len(failed) > 0:
		return errors.Join(failed...)
	case len(found) == 0 && want == "":
		return errors.New("why --last: none of the last 4096 ended sessions has failed")
	case len(found) == 0:
		return fmt.Errorf("why %s: no such session: none is open, and it is not among the last 4096 that have ended; give the client's own address (ADDR:PORT or PORT), the id in the log, or a tag, user, destination or upstream", want)
	}
	for _, err := range failed {
		fmt.Fprintf(a.Stderr, "ambassador: %s\n", output.VisibleLines(err.Error()))
	}
	slices.SortStableFunc(found, newestFirst)
	most := whySessions
	if last {
		most, total = 1, 1
	}
	found = found[:min(len(found), most)]
	if f.json {
		return writeStoriesJSON(a.Stdout, found)
	}
	return writeStories(a.Stdout, found, total, time.Now())
}

// newestFirst puts open sessions first, and then what began last.
func newestFirst(a, b story) int {
	switch {
	case a.Live && !b.Live:
		return -1
	case b.Live && !a.Live:
		return 1
	}
	return b.Start.Compare(a.Start)
}

// allStories asks every process for the sessions that want names; empty: for the last that
// failed.
func (a *commands) allStories(ctx context.Context, clients []*adminClient, want string) (found []story, total int, failed []error) {
	for _, c := range clients {
		stories, n, err := c.stories(ctx, want)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		for i := range stories {
			stories[i].allow(ctx, c)
			if len(clients) > 1 {
				stories[i].Admin = c.where
			}
		}
		found, total = append(found, stories...), total+n
	}
	return found, total, failed
}

// allow fills in what would allow a session that the rules refused.
func (s *story) allow(ctx context.Context, c *adminClient) {
	if s.Reason != outcome.NoRoute && s.Reason != outcome.SpecialAddress && (s.Reason != outcome.Denied || s.Verdict == "") {
		return
	}
	host, text, err := net.SplitHostPort(s.Destination)
	port, portErr := strconv.ParseUint(text, 10, 16)
	if err != nil || portErr != nil {
		return
	}
	e := report.Entry{Host: host, First: uint16(port), Last: uint16(port), Upstream: s.Upstream}
	if e.Upstream == "" {
		e.Upstream = c.dynamicUpstream(ctx)
	}
	if s.AllowRule = e.YAML(); s.AllowRule != "" {
		s.AllowFlag = e.Allow()
	}
}

// dynamicUpstream is the name of the only dynamic upstream; empty if there are several.
func (c *adminClient) dynamicUpstream(ctx context.Context) (name string) {
	var all api.Upstreams
	if c.get(ctx, api.PathUpstreams, &all) != nil {
		return "" // the rule has a placeholder
	}
	for _, u := range all.Upstreams {
		if u.Dynamic && name != "" {
			return ""
		}
		if u.Dynamic {
			name = u.Name
		}
	}
	return name
}

// lastFailed is the newest session that failed, if there is one.
func lastFailed(ended []outcome.Record) []outcome.Record {
	i := slices.IndexFunc(ended, func(r outcome.Record) bool { return logs.Level(&r) > slog.LevelInfo })
	if i < 0 {
		return nil
	}
	return ended[i : i+1]
}

func newStory(r outcome.Record) story {
	s := story{Record: r, Live: r.Reason == "", Advice: outcome.Advice(r.Reason)}
	switch {
	case s.Live:
		s.Advice = liveAdvice(r.Stage)
	case r.Hint != "": // the general advice would lead away from it
		s.Advice = sentence(r.Hint)
	}
	return s
}

// sentence makes a sentence of a part of an error's text.
func sentence(s string) string {
	first, size := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(first)) + s[size:] + "."
}

// liveAdvice says what a live session waits for, and what bounds that.
func liveAdvice(s outcome.Stage) string {
	switch s {
	case outcome.StageRelay:
		return "Nothing has gone wrong so far: bytes pass as they come; timeouts.idle and timeouts.lifetime of the listener bound it, if set."
	case outcome.StageGreet:
		return "It waits for the client: for its PROXY header, its TLS handshake or its request, for timeouts.handshake of the listener at most."
	case outcome.StageDialogue:
		return "It waits for the client's part of the protocol, for timeouts.handshake of the listener at most."
	}
	return "It is being connected, for connect.timeout of the upstream at most: ask again afterwards."
}

// stories puts the live sessions, which are the newer ones, before the ended
// ones, and keeps the newest. live has the oldest first, ended the newest.
func stories(live, ended []outcome.Record) []story {
	out := []story{}
	for i := len(live) - 1; i >= 0 && len(out) < whySessions; i-- {
		out = append(out, newStory(live[i]))
	}
	for i := 0; i < len(ended) && len(out) < whySessions; i++ {
		out = append(out, newStory(ended[i]))
	}
	return out
}

// writeStories tells them for people. total is how many there were.
func writeStories(w io.Writer, all []story, total int, now time.Time) error {
	p := &page{output.Report{Now: now}}
	for i, s := range all {
		if i > 0 {
			p.Linef("")
		}
		p.story(s)
	}
	if more := total - len(all); more > 0 {
		p.Linef("")
		p.Linef("%s not shown; `ambassador sessions --recent` lists all.", output.Plural(more, "older session"))
	}
	_, err := io.WriteString(w, p.String())
	return err
}

func writeStoriesJSON(w io.Writer, all []story) error {
	return output.WriteJSON(w, map[string]any{"sessions": all})
}

func (p *page) story(s story) {
	if s.Live {
		p.Linef("session %s: still open, in stage %s", s.ID, s.Stage)
	} else {
		p.Linef("session %s: %s, in stage %s", s.ID, s.Reason, s.Stage)
	}
	rows := [][2]string{
		{"process", s.Admin},
		{"start", p.When(s.Start) + " (" + output.Age(p.Now.Sub(s.Start)) + " ago)"},
		{"client", s.who()},
		{"destination", s.Destination},
		{"rule", s.Rule},
		{"verdict", s.verdict()},
		{"tag", s.Tag},
		{"trace", s.trace()},
		{"upstream", s.whereTo()},
		{"attempts", fmt.Sprint(s.Attempts)},
		{"cause", s.Cause},
		{"limit", s.Limit},
		{"retry in", s.retryIn()},
		{"killed by", s.KilledBy},
		{"first close", s.FirstClose},
		{"bytes", output.Bytes(s.BytesUp) + " up, " + output.Bytes(s.BytesDown) + " down" + s.cut()},
		{"time", s.times()},
	}
	for _, r := range rows {
		if r[1] != "" {
			p.Linef("  %-12s %s", r[0], r[1])
		}
	}
	p.Linef("%s", s.Advice)
	if s.AllowRule == "" {
		return
	}
	p.Linef("To allow it, put this before the rule in listeners.%s.rules (socks5: --allow '%s'):", s.Listener, s.AllowFlag)
	p.Linef("  - %s", s.AllowRule)
}

func (s story) who() string {
	text := s.Client + " on listener " + s.Listener
	for _, part := range [][2]string{{"user", s.User}, {"principal", s.Principal}, {"", s.ClientProcess()}} {
		if part[1] != "" {
			text += ", " + strings.TrimPrefix(part[0]+" "+part[1], " ")
		}
	}
	return text
}

// trace is empty if the session belongs to no trace.
func (s story) trace() string {
	if s.Trace == nil {
		return ""
	}
	return s.TraceID.String() + ", span " + s.SpanID.String()
}

// verdict is empty where the reason says it all.
func (s story) verdict() string {
	if s.Verdict != string(policy.WouldDeny) {
		return ""
	}
	return s.Verdict + ": " + s.VerdictReason
}

func (s story) whereTo() string {
	text := s.Upstream
	if text == "" {
		return "none chosen"
	}
	if s.Endpoint != "" {
		text += ", endpoint " + s.Endpoint
	}
	if s.Address != "" && s.Address != s.Endpoint {
		text += ", address " + s.Address
	}
	return text
}

func (s story) retryIn() string {
	if s.RetryIn == 0 {
		return ""
	}
	return s.RetryIn.String() + " after its end"
}

func (s story) cut() string {
	if s.Truncated {
		return "; a TLS side ended without close_notify: last bytes may be missing, if the protocol has no end of its own"
	}
	return ""
}

func (s story) times() string {
	text := "ended after " + s.Duration.String()
	if s.Live {
		text = "open for " + s.Duration.String()
	}
	if s.Establish > 0 {
		return text + ", connected after " + s.Establish.String()
	}
	return text + ", never connected through"
}
