package main

import (
	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/process"
	"ambassador/cmd/ambassador/internal/program"
)

// forwardCommand returns the command `forward`. It makes a configuration with one
// listener and one upstream from flags, and then does the same as `run`.
func (a *app) forwardCommand() *cobra.Command {
	var (
		flags serveFlags
		what  forwardFlags
	)
	cmd := &cobra.Command{
		Use: "forward --listen ADDR --to ADDR", Short: "Put one plaintext listener before one TLS service, without a file",
		Long: `Puts one plaintext listener before one service, until SIGTERM or SIGINT. The
connection to the service is TLS unless --plain; --cert and --key, or --pkcs12, are
our identity.
SIGHUP loads the certificates again; they are also taken up when they change.`,
		Example: `  # PostgreSQL: afterwards, psql 'host=127.0.0.1 port=5433 sslmode=disable'
  ambassador forward --listen 127.0.0.1:5433 --to db.internal:5432 --starttls postgres \
      --cert client.crt --key client.key --ca ca.crt

  # Anything else in TLS, on a socket that only this user may open
  ambassador forward --listen unix:/run/app/redis.sock --to redis.internal:6380 --ca ca.crt

  # No TLS at all; the same flags as a configuration file
  ambassador forward --plain --listen 127.0.0.1:7000 --to 127.0.0.1:8000
  ambassador forward --plain --listen 127.0.0.1:7000 --to 127.0.0.1:8000 --print-config`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := flags.check(cmd); err != nil {
				return err
			}
			f, err := forwardFile(&what)
			if err != nil {
				return &program.ExitError{Code: 2, Err: err}
			}
			return a.serveMade(cmd, &flags, f, process.Options{})
		},
	}
	what.bind(cmd.Flags())
	flags.bind(cmd)
	return cmd
}
