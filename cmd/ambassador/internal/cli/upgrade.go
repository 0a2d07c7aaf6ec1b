package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/output"
)

const (
	// upgradeTimeout bounds the checks of the next program, which has 20 s for each of two
	// answers.
	upgradeTimeout = 50 * time.Second
	// resultTimeout bounds the wait for the result, after that for sessions.
	resultTimeout = 60 * time.Second
	// resultInterval is the pause between two questions for the result.
	resultInterval = 50 * time.Millisecond
)

type upgradeFlags struct {
	binary       string
	dryRun, wait bool
}

func (a *commands) upgradeCommand() *cobra.Command {
	u := &upgradeFlags{}
	cmd := a.clientCommand("upgrade", "Replace the program of a running ambassador, and keep its sessions",
		"  ambassador upgrade --dry-run\n  ambassador upgrade\n  ambassador upgrade --binary /opt/ambassador-1.8/ambassador --wait", cobra.NoArgs,
		func(ctx context.Context, f *adminFlags, _ []string) error { return a.upgrade(ctx, f, u) })
	cmd.Long = `Replaces the program of a running ambassador by the file that it was started from, which
may be a new version by now, or by --binary. The process keeps its id, its sockets, its
counters and its sessions: their clients and servers notice a pause at most.

The next program first checks the command line and the configuration. If it refuses them,
cannot be started, or cannot take the sessions over, the running program goes on with all
of them, the reason is printed, and the exit code is 1.

Sessions with TLS 1.2, with a client or a server, cannot be carried over: they end with a
reset and the reason shutdown. --dry-run says how many there are. --wait lets them end
first: idle ones are ended as by a drain, and the others have drain.timeout. Sessions that
are being established have two seconds.

It needs Linux, and is not possible with COMMAND.`
	cmd.Flags().StringVar(&u.binary, "binary", "", "the next program (default: the file that the running one was started from); only for the user of the process and root")
	cmd.Flags().BoolVar(&u.dryRun, "dry-run", false, "check the next program and count the sessions; change nothing")
	cmd.Flags().BoolVar(&u.wait, "wait", false, "let sessions end first that cannot be carried over, for at most drain.timeout")
	return cmd
}

// path is the request.
func (u *upgradeFlags) path() (string, error) {
	q := url.Values{}
	if u.binary != "" {
		at, err := filepath.Abs(u.binary)
		if err != nil {
			return "", err
		}
		q.Set(api.UpgradeBinary, at)
	}
	if u.dryRun {
		q.Set(api.UpgradeDryRun, strconv.FormatBool(true))
	}
	if u.wait {
		q.Set(api.UpgradeWait, strconv.FormatBool(true))
	}
	if len(q) == 0 {
		return api.PathUpgrade, nil
	}
	return api.PathUpgrade + "?" + q.Encode(), nil
}

func (a *commands) upgrade(ctx context.Context, f *adminFlags, u *upgradeFlags) error {
	path, err := u.path()
	if err != nil {
		return err
	}
	c, err := f.client(ctx, a)
	if err != nil {
		return err
	}
	got, err := c.ask(ctx, http.MethodPost, path, upgradeTimeout)
	if err != nil {
		return err
	}
	var plan api.UpgradePlan
	if err := json.Unmarshal(got.body, &plan); err != nil {
		return fmt.Errorf("POST %s: %w; check --admin", api.PathUpgrade, err)
	}
	switch {
	case u.dryRun && f.json:
		return output.WriteAnswer(a.Stdout, got.body)
	case u.dryRun:
		_, err := fmt.Fprintln(a.Stdout, planned(&plan))
		return err
	}
	result, err := c.upgraded(ctx, &plan)
	switch {
	case err != nil:
		return err
	case f.json:
		err = output.WriteJSON(a.Stdout, result)
	case result.Error == "":
		_, err = fmt.Fprintln(a.Stdout, upgradedText(result))
	}
	if err == nil && result.Error != "" {
		err = errors.New("upgrade: " + output.Visible(result.Error) + "; the program before goes on")
	}
	return err
}

// upgraded waits for the result of the upgrade.
func (c *adminClient) upgraded(ctx context.Context, plan *api.UpgradePlan) (*api.Upgrade, error) {
	within, cancel := context.WithTimeout(ctx, resultTimeout+time.Duration(plan.Wait))
	defer cancel()
	for {
		var s api.Status
		err := c.get(within, api.PathStatus, &s)
		if err == nil && s.LastUpgrade != nil && s.LastUpgrade.ID == plan.ID {
			return s.LastUpgrade, nil
		}
		if certs.Pause(within, resultInterval) != nil {
			return nil, fmt.Errorf("upgrade: no result within %v; `ambassador status` and the log may say more (%w)", resultTimeout+time.Duration(plan.Wait), errors.Join(err, ctx.Err()))
		}
	}
}

// planned says what an upgrade would do.
func planned(p *api.UpgradePlan) string {
	text := fmt.Sprintf("%s: version %s after %s, and the configuration is ok\n%s carried over", output.Visible(p.Binary), output.Visible(p.To), output.Visible(p.From), output.Plural(p.Carried, "session"))
	if p.Ended > 0 {
		text += fmt.Sprintf(", %d with TLS 1.2 or a failed side end (--wait lets them end first)", p.Ended)
	}
	if p.Establishing > 0 {
		text += fmt.Sprintf(", %d that are being established are waited for, two seconds at most", p.Establishing)
	}
	return text
}

func upgradedText(u *api.Upgrade) string {
	text := fmt.Sprintf("upgraded from %s to %s, %s carried over", output.Visible(u.From), output.Visible(u.To), output.Plural(u.Carried, "session"))
	if u.Ended > 0 {
		text += fmt.Sprintf(", %d ended", u.Ended)
	}
	return text + ", pause " + u.Pause.String()
}
