package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ambassador/cmd/ambassador/internal/adminsocket"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/l4/outcome"
)

// commands are those that speak to a running ambassador.
type commands struct{ program.World }

// Commands are the commands that speak to a running ambassador.
func Commands(w program.World) []*cobra.Command {
	a := &commands{w}
	return []*cobra.Command{a.statusCommand(), a.sessionsCommand(), a.whyCommand(), a.waitCommand(),
		a.reloadCommand(), a.drainCommand(), a.quitCommand()}
}

// adminFlags are the flags of the commands that speak to a running ambassador.
type adminFlags struct {
	admin, tokenFile string
	json             bool
}

func (f *adminFlags) bind(flags *pflag.FlagSet) {
	flags.StringVar(&f.admin, "admin", "", "the admin API: unix:/path, /path, HOST:PORT or http://HOST:PORT (default: the only live default socket)")
	flags.StringVar(&f.tokenFile, "token-file", "", "file with the token of admin.token_file, for changes over TCP, and for everything with token_for: all")
	flags.BoolVar(&f.json, "json", false, "print JSON")
}

const (
	// clientTimeout bounds a question, its answer included.
	clientTimeout = 15 * time.Second
	// reloadTimeout is longer than the server's own bound, so that its answer is
	// the one that is heard.
	reloadTimeout = api.ReloadTimeout + 10*time.Second
	// maxAnswer bounds an answer: 4096 records are 2 MB, 100 000 live sessions 50.
	maxAnswer = 256 << 20
	// maxTokenFile bounds --token-file, in bytes.
	maxTokenFile = 64 << 10
)

// adminClient asks one admin API.
type adminClient struct {
	http  http.Client
	where string // as a user would give it to --admin
	base  string
	token string
}

// client finds the admin API that the flags mean.
func (f *adminFlags) client(ctx context.Context, a *commands) (*adminClient, error) {
	c := &adminClient{where: f.admin}
	if c.where == "" {
		path, err := a.onlyAdminSocket(ctx)
		if err != nil {
			return nil, err
		}
		c.where = "unix:" + path
	}
	network, address, err := parseAdmin(c.where)
	if err != nil {
		return nil, &program.ExitError{Code: 2, Err: err}
	}
	c.base = "http://localhost"
	if network == "tcp" {
		c.base = "http://" + address
	}
	if f.tokenFile != "" {
		token, err := program.ReadGiven(f.tokenFile, maxTokenFile)
		if err != nil {
			return nil, &program.ExitError{Code: 2, Err: fmt.Errorf("--token-file: %w", err)}
		}
		c.token = strings.TrimSpace(string(token))
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	d.SetMultipathTCP(false)
	c.http.Transport = &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, network, address) }}
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // a token goes nowhere else
	return c, nil
}

// parseAdmin reads the value of --admin.
func parseAdmin(s string) (network, address string, err error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return "unix", path, nil
	}
	if rest, ok := strings.CutPrefix(s, "http://"); ok {
		u, err := url.Parse(s)
		if err != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
			return "", "", fmt.Errorf("--admin %s: give http://HOST:PORT without more", s)
		}
		s = strings.TrimSuffix(rest, "/")
	} else if strings.Contains(s, "://") {
		return "", "", fmt.Errorf("--admin %s: give unix:/path, HOST:PORT or http://HOST:PORT", s)
	} else if strings.Contains(s, "/") {
		return "unix", s, nil
	}
	if _, port, err := net.SplitHostPort(s); err != nil || port == "" {
		return "", "", fmt.Errorf("--admin %s: give unix:/path, HOST:PORT or http://HOST:PORT", s)
	}
	return "tcp", s, nil
}

// severalError is that --admin is needed to choose.
type severalError struct{ sockets []string }

func (e *severalError) Error() string {
	return fmt.Sprintf("%d ambassadors are running; choose one with\n  --admin unix:%s", len(e.sockets), strings.Join(e.sockets, "\n  --admin unix:"))
}

// onlyAdminSocket is the one default socket on which a process answers.
func (a *commands) onlyAdminSocket(ctx context.Context) (string, error) {
	folders := adminsocket.Folders(a.Env)
	live, failed := adminsocket.Live(ctx, folders)
	switch {
	case len(live) == 1:
		return live[0], nil
	case len(live) > 1:
		return "", &program.ExitError{Code: 2, Err: &severalError{live}}
	case len(failed) > 0:
		return "", fmt.Errorf("no admin socket answers: %w; run this as the user of the ambassador, or give --admin ADDR", errors.Join(failed...))
	}
	var paths []string
	for _, f := range folders {
		paths = append(paths, f.Path)
	}
	return "", fmt.Errorf("no ambassador is running here: no admin socket in %s; start one (`ambassador run`, `ambassador forward`), or give --admin ADDR (it prints `listening admin ADDR` at its start)", strings.Join(paths, ", "))
}

// adminAnswer is what the API said.
type adminAnswer struct {
	status int
	body   []byte
}

// ask sends a request and reads the whole answer, within timeout. An answer that
// is no success is an error, but for those in fine.
func (c *adminClient) ask(ctx context.Context, method, path string, timeout time.Duration, fine ...int) (adminAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, nil)
	if err != nil {
		return adminAnswer{}, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return adminAnswer{}, fmt.Errorf("ask %s: %w; is the ambassador running?", c.where, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return adminAnswer{}, fmt.Errorf("ask %s: %s %s: %w", c.where, method, path, err)
	}
	a := adminAnswer{resp.StatusCode, body}
	if resp.StatusCode/100 == 2 {
		return a, nil
	}
	for _, status := range fine {
		if resp.StatusCode == status {
			return a, nil
		}
	}
	return a, a.refusal(method + " " + path)
}

// refusal is the error that an answer carries.
func (a adminAnswer) refusal(what string) error {
	var e api.Error
	if json.Unmarshal(a.body, &e) != nil || e.Text == "" {
		return fmt.Errorf("%s: status %d, and no word of an ambassador; check --admin", what, a.status)
	}
	e.Status = a.status
	if e.Hint == "" {
		return &e
	}
	return fmt.Errorf("%w\n%s", &e, e.Hint)
}

// get reads the JSON at path into v.
func (c *adminClient) get(ctx context.Context, path string, v any) error {
	a, err := c.ask(ctx, http.MethodGet, path, clientTimeout)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(a.body, v); err != nil {
		return fmt.Errorf("GET %s: %w; check --admin", path, err)
	}
	return nil
}

// clientCommand is a command that speaks to a running ambassador.
func (a *commands) clientCommand(use, short, example string, args cobra.PositionalArgs, run func(context.Context, *adminFlags, []string) error) *cobra.Command {
	f := &adminFlags{}
	cmd := &cobra.Command{Use: use, Short: short, Example: example, Args: args,
		RunE: func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), f, args) }}
	f.bind(cmd.Flags())
	return cmd
}

func (a *commands) statusCommand() *cobra.Command {
	return a.clientCommand("status", "Show readiness, listeners, upstreams and identities of a running ambassador",
		"  ambassador status\n  ambassador status --admin unix:/run/ambassador/admin.sock --json", cobra.NoArgs, a.status)
}

func (a *commands) status(ctx context.Context, f *adminFlags, _ []string) error {
	c, err := f.client(ctx, a)
	if err != nil {
		return err
	}
	if f.json {
		return a.copyAnswer(ctx, c, api.PathStatus)
	}
	var s api.Status
	if err := c.get(ctx, api.PathStatus, &s); err != nil {
		return err
	}
	return writeStatus(a.Stdout, s, time.Now())
}

// copyAnswer prints the API's JSON.
func (a *commands) copyAnswer(ctx context.Context, c *adminClient, path string) error {
	got, err := c.ask(ctx, http.MethodGet, path, clientTimeout)
	if err != nil {
		return err
	}
	return output.WriteAnswer(a.Stdout, got.body)
}

func (a *commands) sessionsCommand() *cobra.Command {
	path, recent := api.PathSessions, false
	cmd := a.clientCommand("sessions", "List open sessions, or those that have ended",
		"  ambassador sessions\n  ambassador sessions --recent --json", cobra.NoArgs,
		func(ctx context.Context, f *adminFlags, _ []string) error {
			if recent {
				path = api.PathRecent
			}
			c, err := f.client(ctx, a)
			if err != nil {
				return err
			}
			if f.json {
				return a.copyAnswer(ctx, c, path)
			}
			var s api.Sessions
			if err := c.get(ctx, path, &s); err != nil {
				return err
			}
			return writeSessions(a.Stdout, s.Sessions, recent, time.Now())
		})
	cmd.Flags().BoolVar(&recent, "recent", false, "the last 4096 that have ended, the newest first")
	return cmd
}

func (a *commands) whyCommand() *cobra.Command {
	cmd := a.clientCommand("why ADDR|ID", "Tell how a connection ended, by its client's own address",
		"  ambassador why 127.0.0.1:40000\n  ambassador why 40000\n  ambassador why K7QX-42 --json", oneClient, a.why)
	cmd.Long = `Tell how a connection ended, what was seen, and what can be done.

ADDR is the client's own address: ADDR:PORT, ADDR, or PORT alone, as the
application, ss or netstat show it. ID is a session's id from the log.
If several match, the newest are told first.`
	return cmd
}

// oneClient wants the argument of `why`.
func oneClient(_ *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return errors.New("which connection? give the client's own address or port, or a session's id, like `ambassador why 127.0.0.1:40000`; `ambassador sessions --recent` lists them")
	case 1:
		return nil
	}
	return fmt.Errorf("unexpected %q: one connection at a time", args[1])
}

func (a *commands) why(ctx context.Context, f *adminFlags, args []string) error {
	c, err := f.client(ctx, a)
	if err != nil {
		return err
	}
	// Live ones are asked for first: a session that ends meanwhile is then told of
	// twice rather than not at all.
	query := "?client=" + url.QueryEscape(args[0])
	var live, ended api.Sessions
	if err := c.get(ctx, api.PathSessions+query, &live); err != nil {
		return err
	}
	if err := c.get(ctx, api.PathRecent+query, &ended); err != nil {
		return err
	}
	live.Sessions = withoutEnded(live.Sessions, ended.Sessions)
	found := stories(live.Sessions, ended.Sessions)
	if len(found) == 0 {
		return fmt.Errorf("why %s: no such session: none is open, and it is not among the last 4096 that have ended; give the client's own address (ADDR:PORT or PORT) or the id in the log", args[0])
	}
	if f.json {
		return writeStoriesJSON(a.Stdout, found)
	}
	return writeStories(a.Stdout, found, len(live.Sessions)+len(ended.Sessions), time.Now())
}

// withoutEnded leaves out those that ended between the two questions.
func withoutEnded(live, ended []outcome.Record) []outcome.Record {
	over := map[string]bool{}
	for _, r := range ended {
		over[r.ID] = true
	}
	var out []outcome.Record
	for _, r := range live {
		if !over[r.ID] {
			out = append(out, r)
		}
	}
	return out
}

func (a *commands) reloadCommand() *cobra.Command {
	return a.clientCommand("reload", "Let a running ambassador load its configuration again",
		"  ambassador reload", cobra.NoArgs, tell(a, api.PathReload, reloadTimeout, func(api.Reloaded) string { return "reloaded" }))
}

func (a *commands) drainCommand() *cobra.Command {
	return a.clientCommand("drain", "Let a running ambassador stop accepting; it stays, unready, while sessions end",
		"  ambassador drain", cobra.NoArgs, tell(a, api.PathDrain, clientTimeout, func(t api.Draining) string {
			return "draining, " + output.Plural(t.Sessions, "session") + " open; `ambassador sessions` lists them"
		}))
}

func (a *commands) quitCommand() *cobra.Command {
	return a.clientCommand("quit", "Let a running ambassador drain and end, as SIGTERM does",
		"  ambassador quit", cobra.NoArgs, tell(a, api.PathQuit, clientTimeout, func(t api.Quitting) string {
			return "quitting, " + output.Plural(t.Sessions, "session") + " open"
		}))
}

// tell sends a change and prints what it led to, which words makes of the answer.
func tell[T any](a *commands, path string, timeout time.Duration, words func(T) string) func(context.Context, *adminFlags, []string) error {
	return func(ctx context.Context, f *adminFlags, _ []string) error {
		c, err := f.client(ctx, a)
		if err != nil {
			return err
		}
		got, err := c.ask(ctx, http.MethodPost, path, timeout)
		if err != nil {
			return err
		}
		if f.json {
			return output.WriteAnswer(a.Stdout, got.body)
		}
		var t T
		if err := json.Unmarshal(got.body, &t); err != nil {
			return fmt.Errorf("POST %s: %w; check --admin", path, err)
		}
		_, err = fmt.Fprintln(a.Stdout, words(t))
		return err
	}
}

func (a *commands) waitCommand() *cobra.Command {
	w := &waitFlags{}
	cmd := a.clientCommand("wait", "Wait until a running or starting ambassador is ready",
		"  ambassador wait --timeout 1m && psql -h 127.0.0.1\n  ambassador wait --upstream orders_db", cobra.NoArgs,
		func(ctx context.Context, f *adminFlags, _ []string) error {
			if w.timeout <= 0 {
				return &program.ExitError{Code: 2, Err: fmt.Errorf("--timeout %v: give a duration above zero", w.timeout)}
			}
			return a.wait(ctx, f, w)
		})
	cmd.Flags().DurationVar(&w.timeout, "timeout", 30*time.Second, "how long to wait")
	cmd.Flags().StringVar(&w.upstream, "upstream", "", "wait for this upstream alone")
	return cmd
}

type waitFlags struct {
	timeout  time.Duration
	upstream string
}

// path is what is asked again and again.
func (w *waitFlags) path() string {
	if w.upstream == "" {
		return api.PathReady
	}
	return api.PathReady + "?upstream=" + url.QueryEscape(w.upstream)
}

// waitInterval is the pause between two questions of `wait`.
const waitInterval = 100 * time.Millisecond

// wait asks until the answer is yes. An ambassador that is not there yet may be
// starting; what another question would not change ends the wait.
func (a *commands) wait(parent context.Context, f *adminFlags, w *waitFlags) error {
	ctx, cancel := context.WithTimeout(parent, w.timeout)
	defer cancel()
	tick := time.NewTicker(waitInterval)
	defer tick.Stop()
	var reasons []string
	for {
		got, err := a.askReady(ctx, f, w)
		var exit *program.ExitError
		var refused *api.Error
		switch {
		case err == nil && got == nil:
			return a.printReady(f, nil)
		case errors.As(err, &exit) || errors.As(err, &refused):
			return err
		case isTimeout(err) && len(reasons) > 0: // what was cut off says nothing new
		case err != nil:
			reasons = []string{err.Error()}
		default:
			reasons = got
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
	}
	if parent.Err() != nil {
		return context.Cause(parent)
	}
	if f.json {
		if err := a.printReady(f, reasons); err != nil {
			return err
		}
	}
	return fmt.Errorf("not ready after %v:\n  %s", w.timeout, strings.Join(reasons, "\n  "))
}

// isTimeout says whether an error is the end of a wait: a context's, a socket's.
func isTimeout(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

// askReady asks once. No reasons and no error: it is ready.
func (a *commands) askReady(ctx context.Context, f *adminFlags, w *waitFlags) (reasons []string, err error) {
	c, err := f.client(ctx, a)
	if err != nil {
		return nil, err
	}
	got, err := c.ask(ctx, http.MethodGet, w.path(), clientTimeout, http.StatusServiceUnavailable)
	if err != nil || got.status == http.StatusOK {
		return nil, err
	}
	return strings.Split(string(bytes.TrimSpace(got.body)), "\n"), nil
}

func (a *commands) printReady(f *adminFlags, reasons []string) error {
	if !f.json {
		_, err := fmt.Fprintln(a.Stdout, "ready")
		return err
	}
	if reasons == nil {
		reasons = []string{} // an empty list in JSON
	}
	return json.NewEncoder(output.JSONWriter{W: a.Stdout}).Encode(api.Ready{Ready: len(reasons) == 0, Waiting: reasons})
}
