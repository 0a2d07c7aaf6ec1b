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
	return []*cobra.Command{a.psCommand(), a.statusCommand(), a.sessionsCommand(), a.whyCommand(), a.reportCommand(), a.waitCommand(),
		a.killCommand(), a.reloadCommand(), a.upgradeCommand(), a.drainCommand(), a.quitCommand(), a.pageCommand()}
}

// adminFlags are the flags of the commands that speak to a running ambassador.
type adminFlags struct {
	admin, tokenFile string
	json             bool
}

func (f *adminFlags) bind(flags *pflag.FlagSet) {
	flags.StringVar(&f.admin, "admin", "", "the admin API: unix:/path, /path, HOST:PORT or http://HOST:PORT (default: the sockets of all running ambassadors; a change needs one)")
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

// client finds the admin API for a change: that of --admin, or of the only running
// ambassador.
func (f *adminFlags) client(ctx context.Context, a *commands) (*adminClient, error) {
	found, err := f.addresses(ctx, a)
	switch {
	case err != nil:
		return nil, err
	case len(found) > 1:
		return nil, &program.ExitError{Code: 2, Err: &severalError{found}}
	}
	return f.clientOf(found[0])
}

// addresses returns where --admin says, or the addresses of all running ambassadors, at
// least one.
func (f *adminFlags) addresses(ctx context.Context, a *commands) ([]string, error) {
	if f.admin != "" {
		return []string{f.admin}, nil
	}
	return a.adminSockets(ctx)
}

// clientOf returns a client of the admin API at an address.
func (f *adminFlags) clientOf(where string) (*adminClient, error) {
	c := &adminClient{where: where}
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
type severalError struct{ addresses []string }

func (e *severalError) Error() string {
	return fmt.Sprintf("%d ambassadors are running (`ambassador ps` lists them); choose one with\n  --admin %s", len(e.addresses), strings.Join(e.addresses, "\n  --admin "))
}

// adminSockets returns the addresses of the default sockets on which a process answers,
// at least one.
func (a *commands) adminSockets(ctx context.Context) (addresses []string, err error) {
	folders := adminsocket.Folders(a.Env)
	live, failed := adminsocket.Live(ctx, folders)
	switch {
	case len(live) > 0:
		for _, path := range live {
			addresses = append(addresses, "unix:"+path)
		}
		return addresses, nil
	case len(failed) > 0:
		return nil, fmt.Errorf("no admin socket answers: %w; run this as the user of the ambassador, or give --admin ADDR", errors.Join(failed...))
	}
	var paths []string
	for _, f := range folders {
		paths = append(paths, f.Path)
	}
	return nil, fmt.Errorf("no ambassador is running here: no admin socket in %s; start one (`ambassador run`, `ambassador forward`), or give --admin ADDR (it prints `listening admin ADDR` at its start)", strings.Join(paths, ", "))
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
	return decode(path, a.body, v)
}

// decode reads the JSON that the API answered at path.
func decode(path string, body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
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

// stories asks for the sessions that client names, an address, an id or another name; if
// empty, for the last that failed. Total is how many there are; the newest are returned.
func (c *adminClient) stories(ctx context.Context, client string) (told []story, total int, err error) {
	if client == "" {
		var ended api.Sessions
		err := c.get(ctx, api.PathRecent, &ended)
		return stories(nil, lastFailed(ended.Sessions)), 1, err
	}
	// Live ones are asked for first: a session that ends meanwhile is then told of
	// twice rather than not at all.
	query := "?client=" + url.QueryEscape(client)
	var live, ended api.Sessions
	if err := c.get(ctx, api.PathSessions+query, &live); err != nil {
		return nil, 0, err
	}
	if err := c.get(ctx, api.PathRecent+query, &ended); err != nil {
		return nil, 0, err
	}
	live.Sessions = withoutEnded(live.Sessions, ended.Sessions)
	return stories(live.Sessions, ended.Sessions), len(live.Sessions) + len(ended.Sessions), nil
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
	a.completes(cmd, "upstream", upstreamNames)
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

// askReady asks once. No reasons and no error: every process that was asked is ready.
func (a *commands) askReady(ctx context.Context, f *adminFlags, w *waitFlags) (reasons []string, err error) {
	clients, err := f.clients(ctx, a)
	if err != nil {
		return nil, err
	}
	var unknown error // the upstream that only another process has
	answers := 0
	for _, c := range clients {
		got, err := c.ask(ctx, http.MethodGet, w.path(), clientTimeout, http.StatusServiceUnavailable)
		var refused *api.Error
		switch {
		case len(clients) == 1 && err != nil:
			return nil, err
		case errors.As(err, &refused) && refused.Status == http.StatusNotFound:
			unknown = err
			continue
		case err != nil:
			reasons = append(reasons, err.Error())
		case got.status != http.StatusOK:
			for line := range strings.SplitSeq(string(bytes.TrimSpace(got.body)), "\n") {
				if len(clients) > 1 {
					line = c.where + ": " + line
				}
				reasons = append(reasons, line)
			}
		}
		answers++
	}
	if answers == 0 {
		return nil, unknown
	}
	return reasons, nil
}

func (a *commands) printReady(f *adminFlags, reasons []string) error {
	if !f.json {
		_, err := fmt.Fprintln(a.Stdout, "ready")
		return err
	}
	if reasons == nil {
		reasons = []string{} // an empty list in JSON
	}
	return output.WriteJSON(a.Stdout, api.Ready{Ready: len(reasons) == 0, Waiting: reasons})
}
