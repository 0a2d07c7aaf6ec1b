package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4"
)

// Several ambassadors may run on one host. A question without --admin goes to all of
// them, and a change needs one of them.

// clients returns a client of each admin API that a question goes to, at least one.
func (f *adminFlags) clients(ctx context.Context, a *commands) (all []*adminClient, err error) {
	found, err := f.addresses(ctx, a)
	if err != nil {
		return nil, err
	}
	for _, where := range found {
		c, err := f.clientOf(where)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// processAnswer is the answer of one of several processes, in JSON.
type processAnswer struct {
	Admin  string          `json:"admin"`
	Answer json.RawMessage `json:"answer"`
}

// askEach asks every process, and prints the answers: by show, or as JSON. One answer is
// printed as it is. Of several each has the address of its process. A process that does
// not answer is an error, after the answers of the others.
func (a *commands) askEach(ctx context.Context, f *adminFlags, path string, show func([]byte) error) error {
	return a.askEachFiltered(ctx, f, path, func(body []byte) ([]byte, error) { return body, nil }, show)
}

// askEachFiltered is askEach with a filter of the JSON that is printed.
func (a *commands) askEachFiltered(ctx context.Context, f *adminFlags, path string, filter func([]byte) ([]byte, error), show func([]byte) error) error {
	clients, err := f.clients(ctx, a)
	if err != nil {
		return err
	}
	answers, failed := []processAnswer{}, []error{}
	for _, c := range clients {
		got, err := c.ask(ctx, http.MethodGet, path, clientTimeout)
		if f.json && err == nil && json.Valid(got.body) {
			got.body, err = filter(got.body)
		}
		switch {
		case err != nil && len(clients) == 1:
			return err
		case err != nil:
			failed = append(failed, fmt.Errorf("%s: %w", c.where, err))
			continue
		case f.json && len(clients) == 1:
			return output.WriteAnswer(a.Stdout, got.body)
		case f.json && !json.Valid(got.body):
			failed = append(failed, fmt.Errorf("%s: the answer is no JSON; check --admin", c.where))
			continue
		}
		if len(clients) > 1 && !f.json {
			if len(answers) > 0 {
				fmt.Fprintln(a.Stdout)
			}
			fmt.Fprintf(a.Stdout, "admin %s\n", output.Visible(c.where))
		}
		answers = append(answers, processAnswer{c.where, got.body})
		if f.json {
			continue
		}
		if err := show(got.body); err != nil {
			failed = append(failed, err)
		}
	}
	if f.json {
		failed = append(failed, output.WriteJSON(a.Stdout, map[string]any{"processes": answers}))
	}
	return errors.Join(failed...)
}

// processEntry is a running ambassador in the list of `ps`.
type processEntry struct {
	Admin     string     `json:"admin"`
	PID       int        `json:"pid"`
	Version   string     `json:"version"`
	Started   time.Time  `json:"started"`
	Ready     bool       `json:"ready"`
	Draining  bool       `json:"draining"`
	Sessions  int        `json:"sessions"` // that are open
	Listeners []l4.Bound `json:"listeners"`
}

func (e *processEntry) state() string {
	switch {
	case e.Draining:
		return "draining"
	case e.Ready:
		return "ready"
	}
	return "not ready"
}

func (a *commands) psCommand() *cobra.Command {
	return a.clientCommand("ps", "List the running ambassadors of this host", "  ambassador ps\n  ambassador ps --json", cobra.NoArgs, a.ps)
}

func (a *commands) ps(ctx context.Context, f *adminFlags, _ []string) error {
	clients, err := f.clients(ctx, a)
	if err != nil {
		return err
	}
	entries, failed := []processEntry{}, []error{}
	for _, c := range clients {
		var s api.Status
		if err := c.get(ctx, api.PathStatus, &s); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", c.where, err))
			continue
		}
		e := processEntry{Admin: c.where, PID: s.PID, Version: s.Version, Started: s.Started, Ready: s.Readiness.Ready, Draining: s.Readiness.Draining,
			Sessions: s.Sessions, Listeners: []l4.Bound{}}
		for _, l := range s.Listeners {
			e.Listeners = append(e.Listeners, l.Bound)
		}
		entries = append(entries, e)
	}
	if f.json {
		err = output.WriteJSON(a.Stdout, map[string]any{"processes": entries})
	} else {
		err = a.writeEntries(entries, time.Now())
	}
	return errors.Join(append(failed, err)...)
}

// writeEntries lists processes for people.
func (a *commands) writeEntries(all []processEntry, now time.Time) error {
	if len(all) == 0 {
		return nil
	}
	rows := [][]string{{"PID", "VERSION", "UP", "STATE", "SESSIONS", "LISTENERS", "ADMIN"}}
	for _, e := range all {
		var listeners []string
		for _, l := range e.Listeners {
			listeners = append(listeners, l.Name+"="+l.Addr)
		}
		rows = append(rows, []string{strconv.Itoa(e.PID), e.Version, output.Age(now.Sub(e.Started)), e.state(), strconv.Itoa(e.Sessions), strings.Join(listeners, " "), e.Admin})
	}
	p := a.newPage()
	p.Now = now
	p.Table(rows)
	_, err := fmt.Fprint(a.Stdout, p.String())
	return err
}
