package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/l4/outcome"
)

// sessionFlags choose sessions.
type sessionFlags struct {
	user, dest, listener, since string
	reasons                     []string
	uid                         int64
	recent, follow, slow        bool

	after time.Time // that --since means
}

func (a *commands) sessionsCommand() *cobra.Command {
	s := &sessionFlags{}
	cmd := a.clientCommand("sessions", "List open sessions, or those that have ended",
		"  ambassador sessions --user batch\n  ambassador sessions --recent --reason denied --since 10m\n  ambassador sessions --follow --dest db.internal\n  ambassador sessions --slow", cobra.NoArgs,
		func(ctx context.Context, f *adminFlags, _ []string) error {
			if err := s.check(time.Now()); err != nil {
				return &program.ExitError{Code: 2, Err: err}
			}
			if s.follow {
				return a.follow(ctx, f, s)
			}
			return a.sessions(ctx, f, s)
		})
	flags := cmd.Flags()
	flags.BoolVar(&s.recent, "recent", false, "the last 4096 that have ended, the newest first")
	flags.StringVar(&s.user, "user", "", "only those of this user")
	flags.Int64Var(&s.uid, "uid", -1, "only those of this user id of the system")
	flags.StringVar(&s.dest, "dest", "", "only those to this HOST:PORT, HOST, upstream or address")
	flags.StringSliceVar(&s.reasons, "reason", nil, "only those that ended for one of these reasons; implies --recent")
	flags.StringVar(&s.listener, "listener", "", "only those of this listener")
	flags.StringVar(&s.since, "since", "", "only those that began, or with --recent ended, since then: 10m, 15:04 or 2006-01-02T15:04:05Z")
	flags.BoolVar(&s.slow, "slow", false, "the 20 that took longest to connect to their upstream, the slowest first; implies --recent")
	flags.BoolVar(&s.follow, "follow", false, "print sessions as they end, until Ctrl-C; with --json one in a line")
	a.completes(cmd, "listener", listenerNames)
	if err := cmd.RegisterFlagCompletionFunc("reason", reasonNames); err != nil {
		panic("cli: internal error: completion: " + err.Error())
	}
	return cmd
}

// check reads --since and --reason.
func (s *sessionFlags) check(now time.Time) (err error) {
	for _, r := range s.reasons {
		if !slices.Contains(outcome.Reasons(), outcome.Reason(r)) {
			return fmt.Errorf("--reason %q: unknown; use one of %s", r, joinReasons())
		}
	}
	if s.slow && s.follow {
		return errors.New("--slow and --follow: give one of them; --slow sorts sessions that have ended")
	}
	s.recent = s.recent || len(s.reasons) > 0 || s.follow || s.slow
	if s.since != "" {
		s.after, err = parseSince(s.since, now)
	}
	return err
}

func joinReasons() string {
	var names []string
	for _, r := range outcome.Reasons() {
		names = append(names, string(r))
	}
	return strings.Join(names, ", ")
}

// parseSince reads a duration before now, a time of today, or a time.
func parseSince(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{"15:04", "15:04:05"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			y, m, d := now.Date()
			return time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), 0, now.Location()), nil
		}
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("--since %q: give a duration like 10m, or a time like 15:04 or 2006-01-02T15:04:05Z", s)
}

// listed is a session in an answer, with its JSON as it came.
type listed struct {
	outcome.Record
	UID   *int64 `json:"uid"`
	raw   json.RawMessage
	start string // for people
}

// matches reports whether the flags choose the session.
func (s *sessionFlags) matches(r *listed) bool {
	at := r.Start
	if r.Reason != "" {
		at = at.Add(time.Duration(r.Duration))
	}
	host := r.Destination
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		host = strings.Trim(host[:i], "[]")
	}
	return (s.user == "" || r.User == s.user) && (s.listener == "" || r.Listener == s.listener) &&
		(s.uid < 0 || r.UID != nil && *r.UID == s.uid) &&
		(s.dest == "" || slices.Contains([]string{r.Destination, host, r.Upstream, r.Endpoint, r.Address}, s.dest)) &&
		(len(s.reasons) == 0 || slices.Contains(s.reasons, string(r.Reason))) && !at.Before(s.after)
}

// chosen returns the sessions of an answer that the flags choose.
func (s *sessionFlags) chosen(path string, body []byte) ([]listed, error) {
	var all struct {
		Sessions []json.RawMessage `json:"sessions"`
	}
	if err := decode(path, body, &all); err != nil {
		return nil, err
	}
	out := []listed{}
	for _, raw := range all.Sessions {
		r := listed{raw: raw}
		if err := decode(path, raw, &r); err != nil {
			return nil, err
		}
		if s.matches(&r) {
			out = append(out, r)
		}
	}
	if s.slow {
		out = slowest(out)
	}
	return out, nil
}

// maxSlow is how many sessions --slow lists.
const maxSlow = 20

// slowest returns the sessions that took longest to connect, the slowest first.
func slowest(all []listed) []listed {
	all = slices.DeleteFunc(all, func(r listed) bool { return r.Establish == 0 })
	slices.SortStableFunc(all, func(a, b listed) int { return cmp.Compare(b.Establish, a.Establish) })
	return all[:min(len(all), maxSlow)]
}

func (s *sessionFlags) path() string {
	if s.recent {
		return api.PathRecent
	}
	return api.PathSessions
}

func (a *commands) sessions(ctx context.Context, f *adminFlags, s *sessionFlags) error {
	return a.askEachFiltered(ctx, f, s.path(), s.filter, func(body []byte) error {
		all, err := s.chosen(s.path(), body)
		if err != nil {
			return err
		}
		p := a.newPage()
		p.sessions(all, s)
		_, err = fmt.Fprint(a.Stdout, p.String())
		return err
	})
}

// filter keeps the chosen sessions of an answer.
func (s *sessionFlags) filter(body []byte) ([]byte, error) {
	all, err := s.chosen(s.path(), body)
	if err != nil {
		return nil, err
	}
	raws := []json.RawMessage{}
	for i := range all {
		raws = append(raws, all[i].raw)
	}
	var b bytes.Buffer
	err = output.WriteJSON(&b, map[string]any{"sessions": raws})
	return b.Bytes(), err
}

// column is a column of the list of sessions.
type column struct {
	head string
	cell func(*listed) string
	// optional columns are shown if a session has something there, others with from only on
	// a terminal of at least so many columns.
	optional bool
	from     int
}

// wide is the width from which everything is shown; standard that of a usual terminal.
const wide, standard = 120, 100

// columns are those of a list of sessions, in order.
func columns(all []listed, s *sessionFlags) []column {
	upstreamFrom := 0
	if slices.ContainsFunc(all, func(r listed) bool { return r.Destination != "" }) { // which says more
		upstreamFrom = standard
	}
	stage := column{head: "STAGE", cell: func(r *listed) string { return string(r.Stage) }}
	reason := column{head: "REASON", cell: func(r *listed) string { return string(r.Reason) }, optional: true}
	connect := column{head: "CONNECT", cell: func(*listed) string { return "" }, optional: true}
	bytesFrom, addressFrom := 0, wide
	if s.recent {
		bytesFrom, stage.from = wide, wide
	}
	if s.slow {
		connect.cell, addressFrom = func(r *listed) string { return r.Establish.String() }, 0
	}
	return []column{
		{head: "ID", cell: func(r *listed) string { return r.ID }},
		{head: "START", cell: func(r *listed) string { return r.start }, from: wide},
		{head: "CLIENT", cell: func(r *listed) string { return r.Client }},
		{head: "USER", cell: (*listed).who, optional: true},
		{head: "LISTENER", cell: func(r *listed) string { return r.Listener }},
		{head: "RULE", cell: func(r *listed) string { return r.Rule }, optional: true, from: standard},
		{head: "DESTINATION", cell: func(r *listed) string { return r.Destination }, optional: true},
		{head: "UPSTREAM", cell: func(r *listed) string { return r.Upstream }, from: upstreamFrom},
		{head: "ADDRESS", cell: func(r *listed) string { return r.Address }, from: addressFrom},
		stage,
		{head: "UP", cell: func(r *listed) string { return output.Bytes(r.BytesUp) }, from: bytesFrom},
		{head: "DOWN", cell: func(r *listed) string { return output.Bytes(r.BytesDown) }, from: bytesFrom},
		connect,
		{head: "TIME", cell: func(r *listed) string { return brief(time.Duration(r.Duration)) }},
		reason,
		{head: "TAG", cell: func(r *listed) string { return r.Tag }, optional: true, from: standard},
		{head: "CAUSE", cell: func(r *listed) string { return r.Cause }, optional: true, from: standard},
	}
}

// who is the user: the name that the client gave, or the user id of the system, and the
// name of the process if the listener looks for it.
func (r *listed) who() string {
	who := r.User
	if who == "" && r.UID != nil {
		who = "uid " + strconv.FormatInt(*r.UID, 10)
	}
	if r.Process != "" {
		who += " (" + r.Process + ")"
	}
	return who
}

// brief is a duration in few characters.
func brief(d time.Duration) string {
	if d < 10*time.Second {
		return d.Round(time.Millisecond).String()
	}
	return output.Age(d)
}

// sessions lists sessions for people.
func (p *page) sessions(all []listed, s *sessionFlags) {
	if len(all) == 0 {
		p.Linef("%s", s.none())
		return
	}
	for i := range all {
		all[i].start = p.When(all[i].Start)
	}
	rows := make([][]string, len(all)+1)
	for _, c := range columns(all, s) {
		if p.Width > 0 && p.Width < c.from || c.optional && !slices.ContainsFunc(all, func(r listed) bool { return c.cell(&r) != "" }) {
			continue
		}
		rows[0] = append(rows[0], c.head)
		for i := range all {
			rows[i+1] = append(rows[i+1], c.cell(&all[i]))
		}
	}
	p.Table(rows)
}

// none says that the list is empty.
func (s *sessionFlags) none() string {
	switch {
	case s.slow:
		return "No session that has ended was connected to an upstream; `ambassador sessions --recent` lists all that have ended."
	case s.user != "" || s.dest != "" || s.listener != "" || s.since != "" || len(s.reasons) > 0 || s.uid >= 0:
		return "No session matches."
	case s.recent:
		return "No session has ended yet."
	}
	return "No session is open. `ambassador sessions --recent` lists those that have ended."
}

// follow prints the chosen sessions as they end, until ctx ends: those of --since first.
func (a *commands) follow(ctx context.Context, f *adminFlags, s *sessionFlags) error {
	if s.since == "" {
		s.after = time.Now()
	}
	seen, complaint := map[string]bool{}, ""
	for {
		all, err := a.ended(ctx, f, s)
		if exit := (*program.ExitError)(nil); errors.As(err, &exit) && exit.Code == 2 {
			return err // a mistake on the command line stays one
		}
		if err != nil && ctx.Err() == nil && err.Error() != complaint {
			complaint = err.Error()
			fmt.Fprintf(a.Stderr, "ambassador: %s\n", output.VisibleLines(complaint))
		}
		now := map[string]bool{}
		for i := range all {
			r := &all[i]
			now[r.ID] = true
			if !seen[r.ID] {
				a.printEnded(f, r)
			}
		}
		if err == nil {
			seen, complaint = now, ""
		} else {
			maps.Copy(seen, now) // those of a process that did not answer stay
		}
		if certs.Pause(ctx, watchInterval) != nil {
			return nil
		}
	}
}

// ended asks every process for the ended sessions, and returns the oldest first.
func (a *commands) ended(ctx context.Context, f *adminFlags, s *sessionFlags) (all []listed, err error) {
	clients, err := f.clients(ctx, a)
	if err != nil {
		return nil, err
	}
	for _, c := range clients {
		got, askErr := c.ask(ctx, http.MethodGet, api.PathRecent, clientTimeout)
		if askErr != nil {
			err = errors.Join(err, askErr)
			continue
		}
		some, readErr := s.chosen(api.PathRecent, got.body)
		err = errors.Join(err, readErr)
		slices.Reverse(some)
		all = append(all, some...)
	}
	return all, err
}

// printEnded prints a session in one line.
func (a *commands) printEnded(f *adminFlags, r *listed) {
	if f.json {
		var line bytes.Buffer
		if json.Compact(&line, r.raw) == nil {
			line.WriteByte('\n')
			output.JSONWriter{W: a.Stdout}.Write(line.Bytes())
		}
		return
	}
	p := a.newPage()
	to := r.Destination
	if to == "" {
		to = r.Upstream
	}
	end := r.Start.Add(time.Duration(r.Duration)).In(p.Now.Location())
	fields := []string{end.Format("15:04:05"), r.ID, r.Listener, r.Client, "→", to}
	for _, part := range [][2]string{{"user", r.who()}, {"rule", r.Rule}, {"tag", r.Tag}} {
		if part[1] != "" {
			fields = append(fields, part[0]+" "+part[1])
		}
	}
	line := output.Visible(strings.Join(fields, "  ")) + "  " + p.Paint(string(r.Reason))
	if r.Cause != "" {
		line += ": " + output.Visible(r.Cause)
	}
	fmt.Fprintln(a.Stdout, line)
}
