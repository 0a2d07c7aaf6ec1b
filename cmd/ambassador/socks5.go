package main

import (
	"time"

	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/process"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/cmd/ambassador/internal/report"
)

// socks5Command returns the command `socks5`. It makes a configuration with one SOCKS5
// listener and the allowed destinations from flags, and then does the same as `run`.
func (a *app) socks5Command() *cobra.Command {
	var (
		flags serveFlags
		what  socks5Flags
	)
	cmd := &cobra.Command{
		Use: "socks5 --listen ADDR --allow HOST:PORT …", Short: "Be a SOCKS5 proxy to what is allowed, and to nothing else, without a file",
		Long: `Takes SOCKS5 connections and makes those that --allow has, until SIGTERM or SIGINT;
all others are refused. *.SUFFIX is every name below the suffix; a CIDR range is the
addresses in it, asked for or found behind a name, which is looked up only for that.
Loopback, private and other special addresses stay closed unless they are named: a
whole HOST opens private ones, localhost opens loopback, a CIDR range inside of them
what it has.`,
		Example: `  # curl --socks5-hostname 127.0.0.1:1080 https://api.example.com/
  ambassador socks5 --listen 127.0.0.1:1080 --allow 'api.example.com:443' --allow '*.example.org:*'

  # Only who is in the file; a database and what listens on this host
  htpasswd -nbB batch secret > users
  ambassador socks5 --listen 127.0.0.1:1080 --users users --allow db.internal:5432 --allow 'localhost:8000-8999'

  # Find out what a program needs: all but special addresses pass, and the end prints it
  ambassador socks5 --listen 127.0.0.1:1080 --report`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := flags.check(cmd); err != nil {
				return err
			}
			f, err := socks5File(&what)
			if err != nil {
				return &program.ExitError{Code: 2, Err: err}
			}
			if !what.report || flags.printConfig {
				return a.serveMade(cmd, &flags, f, process.Options{})
			}
			tally := report.New(time.Now())
			if err := a.serveMade(cmd, &flags, f, process.Options{Report: tally}); err != nil {
				return err
			}
			return writeReport(a.Stdout, tally.Report(nil))
		},
	}
	what.bind(cmd.Flags())
	flags.bind(cmd)
	return cmd
}
