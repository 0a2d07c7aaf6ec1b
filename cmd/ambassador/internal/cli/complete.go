package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/outcome"
)

const (
	// completeTimeout bounds what a shell waits for an answer.
	completeTimeout = 2 * time.Second
	// completeSessions is how many ended sessions are offered of each process.
	completeSessions = 50
)

// offer lists what the shell may complete, as one process knows it.
type offer func(ctx context.Context, c *adminClient) []cobra.Completion

// completes lets the shell complete the argument of a command or, with a flag's name, the
// value of the flag, by what the running ambassadors answer.
func (a *commands) completes(cmd *cobra.Command, flag string, words offer) {
	complete := func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if flag == "" && len(args) > 0 { // these commands have one argument
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.askAll(cmd, words), cobra.ShellCompDirectiveNoFileComp
	}
	if flag == "" {
		cmd.ValidArgsFunction = complete
	} else if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
		panic("cli: internal error: completion: " + err.Error())
	}
}

// askAll collects the words of all processes. A process that does not answer has none.
func (a *commands) askAll(cmd *cobra.Command, words offer) (all []cobra.Completion) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
	defer cancel()
	f := &adminFlags{admin: cmd.Flag("admin").Value.String(), tokenFile: cmd.Flag("token-file").Value.String()}
	clients, err := f.clients(ctx, a)
	if err != nil {
		return nil
	}
	for _, c := range clients {
		for _, word := range words(ctx, c) {
			if !slices.Contains(all, word) {
				all = append(all, word)
			}
		}
	}
	return all
}

func listenerNames(ctx context.Context, c *adminClient) (out []cobra.Completion) {
	var s api.Status
	if c.get(ctx, api.PathStatus, &s) != nil {
		return nil
	}
	for _, l := range s.Listeners {
		out = append(out, l.Name)
	}
	return out
}

func upstreamNames(ctx context.Context, c *adminClient) (out []cobra.Completion) {
	var s api.Status
	if c.get(ctx, api.PathStatus, &s) != nil {
		return nil
	}
	for _, u := range s.Upstreams {
		out = append(out, u.Name)
	}
	return out
}

// openIDs are the ids of open sessions, with their client and listener.
func openIDs(ctx context.Context, c *adminClient) (out []cobra.Completion) {
	var s api.Sessions
	if c.get(ctx, api.PathSessions, &s) != nil {
		return nil
	}
	for _, r := range s.Sessions {
		out = append(out, idOf(&r, "open"))
	}
	return out
}

// allIDs are those of open sessions, and of the newest that ended, with their reason.
func allIDs(ctx context.Context, c *adminClient) []cobra.Completion {
	out := openIDs(ctx, c)
	var s api.Sessions
	if c.get(ctx, api.PathRecent, &s) != nil {
		return out
	}
	for _, r := range s.Sessions[:min(len(s.Sessions), completeSessions)] {
		out = append(out, idOf(&r, string(r.Reason)))
	}
	return out
}

func idOf(r *outcome.Record, what string) cobra.Completion {
	return cobra.CompletionWithDesc(r.ID, output.Visible(fmt.Sprintf("%s on %s, %s", r.Client, r.Listener, what)))
}

// reasonNames completes reasons, which need no process.
func reasonNames(*cobra.Command, []string, string) (out []cobra.Completion, _ cobra.ShellCompDirective) {
	for _, r := range outcome.Reasons() {
		out = append(out, string(r))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
