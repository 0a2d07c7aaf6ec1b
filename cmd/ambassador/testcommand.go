package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/explain"
	"ambassador/cmd/ambassador/internal/livetest"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/process"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/cmd/ambassador/internal/secrets"
)

// testReply is what `test --json` prints.
type testReply struct {
	File string `json:"file"`
	*livetest.Report
}

// testCommand returns the command `test`.
func (a *app) testCommand() *cobra.Command {
	var (
		path, as string
		dests    []string
		asJSON   bool
		timeout  time.Duration
		what     forwardFlags
	)
	cmd := &cobra.Command{
		Use: "test [-c FILE] [UPSTREAM …] [--dest HOST:PORT …]", Short: "Connect once to every address of the upstreams, and say how each stage went",
		Long: `Connects once to every address of the upstreams of a configuration file, or of
--to and the other flags of forward, and prints a line for each stage: resolve,
connect, proxy, starttls, the server's certificate, whether the server accepts ours,
and what it says first. A failure has the words and the fix that the record of a
session would have. Nothing is listened on, and no byte of a client is sent: the flags
of forward that are about its listener, such as --listen, may be given and change nothing.

--dest opens a destination as a client of socks5, http_connect or original_destination
would: it says what the rules of each such listener decide, and then connects to the
addresses. It may be given several times; upstreams are then tested only if they are
named, too. --as says what rules may ask about the client: 'listener=NAME client=IP
user=NAME uid=NUMBER principal=… sni=NAME', as far as they apply. A destination is
reached if one of its addresses is.

The exit code is 0 if all of that went well, 3 if it did not, and 2 for a mistake in
the configuration. check finds those without contacting a server.`,
		Example: `  ambassador test -c ambassador.yaml
  ambassador test -c ambassador.yaml orders_db
  ambassador test -c ambassador.yaml --dest api.example.com:443 --as 'listener=egress user=batch'
  ambassador test --to db.internal:5432 --starttls postgres --cert client.crt --key client.key --ca ca.crt`,
		ValidArgsFunction: func(_ *cobra.Command, given []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return a.upstreamsOf(path, given), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout <= 0 {
				return usageError(cmd, fmt.Errorf("--timeout %v: give a duration above zero", timeout))
			}
			f, err := a.testedFile(cmd, path, &what, args)
			if err != nil {
				return err
			}
			requests, err := requestsOf(cmd, f, dests, as)
			if err != nil {
				return err
			}
			opts := livetest.Options{Upstreams: args, Requests: requests, Ask: process.AskHTTP, Env: a.Env}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			within, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			if err := a.test(within, f, opts, asJSON); err == nil || ctx.Err() == nil {
				return err
			}
			return errors.New("test: interrupted")
		},
	}
	what.bind(cmd.Flags())
	for _, name := range []string{"listen", "idle", "socket-mode", "unsafe-plaintext-listen", "no-health"} {
		must(cmd.Flags().MarkHidden(name)) // accepted, so that a command line of forward is one of test
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "the configuration file (default ./ambassador.yaml, then /etc/ambassador/ambassador.yaml)")
	cmd.Flags().StringArrayVar(&dests, "dest", nil, "the destination to open as a client would: HOST:PORT (more than one is possible)")
	cmd.Flags().StringVar(&as, "as", "", "with --dest: the client that rules judge: 'listener=NAME client=IP user=NAME …'")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "the bound of the whole test")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// upstreamsOf returns the upstreams of a configuration file that are not given yet; none if
// the file cannot be loaded.
func (a *app) upstreamsOf(path string, given []string) (names []cobra.Completion) {
	found, err := config.Find(path)
	if err != nil {
		return nil
	}
	f, err := secrets.LoadFile(found, a.Env)
	if err != nil {
		return nil
	}
	for _, u := range f.Upstreams {
		if !slices.Contains(given, u.Name) {
			names = append(names, u.Name)
		}
	}
	return names
}

// testedFile is the configuration to test: that of the flags of forward if one is given,
// else a file.
func (a *app) testedFile(cmd *cobra.Command, path string, what *forwardFlags, args []string) (*config.File, error) {
	given := "" // a flag of forward
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if !slices.Contains([]string{"config", "json", "timeout", "dest", "as"}, f.Name) {
			given = "--" + f.Name
		}
	})
	switch {
	case given != "" && cmd.Flags().Changed("config"):
		return nil, usageError(cmd, fmt.Errorf("%s and --config: a test is of flags or of a file; remove one of them", given))
	case given != "" && len(args) > 0:
		return nil, usageError(cmd, fmt.Errorf("unexpected %q: the flags of forward make one upstream; names are for a file", args[0]))
	case given != "":
		if len(what.listen) == 0 {
			what.listen = []string{"127.0.0.1:0"} // nothing is listened on
		}
		f, err := forwardFile(what)
		if err != nil {
			return nil, &program.ExitError{Code: 2, Err: err}
		}
		return f, nil
	}
	found, err := config.Find(path)
	if err != nil {
		return nil, &program.ExitError{Code: 2, Err: err}
	}
	f, err := secrets.LoadFile(found, a.Env)
	if err != nil {
		return nil, &program.ExitError{Code: 2, Err: err}
	}
	return f, nil
}

// requestsOf are the questions of clients that ask for the destinations.
func requestsOf(cmd *cobra.Command, f *config.File, dests []string, as string) (all []*explain.Question, err error) {
	if as != "" && len(dests) == 0 {
		return nil, usageError(cmd, errors.New("--as describes the client that asks for a destination; give --dest HOST:PORT with it"))
	}
	for _, dest := range dests {
		requests, err := explain.Requests(f, dest, as)
		if err != nil {
			return nil, usageError(cmd, err)
		}
		all = append(all, requests...)
	}
	return all, nil
}

// test runs the test and prints its results as they come. The exit code is 3 if an
// address failed, or a destination was not reached.
func (a *app) test(ctx context.Context, f *config.File, opts livetest.Options, asJSON bool) error {
	var written error
	if !asJSON {
		opts.Done = func(r livetest.Result) { written = errors.Join(written, r.Write(a.Stdout)) }
	}
	report, err := livetest.Run(ctx, f, opts)
	if err != nil {
		return &program.ExitError{Code: 2, Err: err}
	}
	if asJSON {
		written = output.WriteJSON(a.Stdout, testReply{f.Name(), report})
	} else {
		_, err := fmt.Fprintf(a.Stdout, "%s: %s\n", output.Visible(f.Name()), report.Summary())
		written = errors.Join(written, err)
	}
	if written == nil && !report.OK {
		return &program.ExitError{Code: 3}
	}
	return written
}
