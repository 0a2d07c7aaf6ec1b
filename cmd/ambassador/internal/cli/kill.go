package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/output"
)

func (a *commands) killCommand() *cobra.Command {
	cmd := a.clientCommand("kill ID", "End an open session with a reset; its record names you",
		"  ambassador kill K7QX-42", cobra.ExactArgs(1), a.kill)
	a.completes(cmd, "", openIDs)
	return cmd
}

// kill asks every process, because an id belongs to one of them.
func (a *commands) kill(ctx context.Context, f *adminFlags, args []string) error {
	clients, err := f.clients(ctx, a)
	if err != nil {
		return err
	}
	path := strings.Replace(api.PathKill, "{id}", url.PathEscape(args[0]), 1)
	var failed []error
	for _, c := range clients {
		got, err := c.ask(ctx, http.MethodPost, path, clientTimeout)
		var refused *api.Error
		switch {
		case err == nil && f.json:
			return output.WriteAnswer(a.Stdout, got.body)
		case err == nil:
			_, err = fmt.Fprintf(a.Stdout, "killed %s\n", output.Visible(args[0]))
			return err
		case !errors.As(err, &refused) || refused.Status != http.StatusNotFound:
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 {
		return errors.Join(failed...)
	}
	return fmt.Errorf("kill %s: no open session has that id; `ambassador sessions` lists them", args[0])
}
