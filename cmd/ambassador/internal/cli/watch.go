package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/program"
)

// watchInterval is the pause between two answers of --watch and --follow.
const watchInterval = 2 * time.Second

func (a *commands) statusCommand() *cobra.Command {
	watch := false
	cmd := a.clientCommand("status", "Show readiness, listeners, upstreams and identities of a running ambassador",
		"  ambassador status\n  ambassador status --watch\n  ambassador status --admin unix:/run/ambassador/admin.sock --json", cobra.NoArgs,
		func(ctx context.Context, f *adminFlags, _ []string) error {
			if watch && f.json {
				return &program.ExitError{Code: 2, Err: fmt.Errorf("--watch is for people; ask for --json again and again instead")}
			}
			if watch {
				return a.watch(ctx, func() error { return a.status(ctx, f) })
			}
			return a.status(ctx, f)
		})
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every 2 seconds, until Ctrl-C")
	return cmd
}

func (a *commands) status(ctx context.Context, f *adminFlags) error {
	return a.askEach(ctx, f, api.PathStatus, func(body []byte) error {
		var s api.Status
		if err := decode(api.PathStatus, body, &s); err != nil {
			return err
		}
		p := a.newPage()
		p.status(s)
		_, err := fmt.Fprint(a.Stdout, p.String())
		return err
	})
}

// watch calls show every watchInterval until ctx ends, on a cleared screen if there is a
// terminal. An error is shown, and ends nothing: the process may be restarting.
func (a *commands) watch(ctx context.Context, show func() error) error {
	terminal := screenOf(a.Stdout, a.Env).Width > 0
	for {
		if terminal {
			fmt.Fprint(a.Stdout, "\x1b[H\x1b[2J")
		}
		if err := show(); err != nil && ctx.Err() == nil {
			fmt.Fprintf(a.Stdout, "%s\n", output.VisibleLines(err.Error()))
		}
		if certs.Pause(ctx, watchInterval) != nil {
			return nil
		}
		if !terminal {
			fmt.Fprintln(a.Stdout)
		}
	}
}
