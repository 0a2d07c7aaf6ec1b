package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/logs"
	"ambassador/cmd/ambassador/internal/process"
	"ambassador/cmd/ambassador/internal/program"
)

// serveFlags are the flags of the commands that run an ambassador.
type serveFlags struct {
	admin       string
	logLevel    string
	logFormat   string
	printConfig bool
}

func (f *serveFlags) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.admin, "admin", "", `where the admin API listens: unix:/path or HOST:PORT; "" turns it off (default: a socket of its own)`)
	cmd.Flags().StringVar(&f.logLevel, "log-level", "", "debug, info, warn or error (default info)")
	cmd.Flags().StringVar(&f.logFormat, "log-format", "", "auto, text or json (default auto: lines for people on a terminal, else json)")
	cmd.Flags().BoolVar(&f.printConfig, "print-config", false, "print the configuration as YAML and exit")
}

// check returns errors in the flags.
func (f *serveFlags) check(cmd *cobra.Command) error {
	if _, err := logs.ParseLevel(f.logLevel); err != nil {
		return usageError(cmd, fmt.Errorf("--log-level: %w", err))
	}
	switch f.logFormat {
	case "", "auto", "text", "json":
		return nil
	}
	return usageError(cmd, fmt.Errorf("--log-format: %q is no format; use auto, text or json", f.logFormat))
}

// apply overrides the file's values with the flags that were set.
func (f *serveFlags) apply(cmd *cobra.Command, file *config.File) {
	if cmd.Flags().Changed("admin") {
		file.Admin.Listen, file.Admin.Off = f.admin, f.admin == ""
	}
	if f.logLevel != "" {
		file.Log.Level = f.logLevel
	}
	if f.logFormat != "" {
		file.Log.Format = f.logFormat
	}
}

// serveMade runs a configuration made from flags, or prints it.
func (a *app) serveMade(cmd *cobra.Command, flags *serveFlags, f *config.File, opts process.Options) error {
	flags.apply(cmd, f)
	if flags.printConfig {
		return f.PrintYAML(a.Stdout)
	}
	opts.Handover = a.handover
	return process.Run(cmd.Context(), a.World, f, opts)
}

// runCommand returns the command `run`.
func (a *app) runCommand() *cobra.Command {
	var (
		flags serveFlags
		path  string
		watch bool
		wait  time.Duration
	)
	cmd := &cobra.Command{
		Use: "run [-c FILE] [-- COMMAND …]", Short: "Run what a configuration file says, and a COMMAND that needs it",
		Long: `Runs what a configuration file says, until SIGTERM or SIGINT. A second one ends at
once; SIGHUP reloads the file.

With COMMAND, that is started once every required upstream has been reached, for
which --wait-timeout is the bound. For each listener it gets a variable with the
address, like AMBASSADOR_LISTENER_ORDERS_DB=127.0.0.1:5432 for orders-db. SIGTERM,
SIGINT, SIGQUIT, SIGUSR1, SIGUSR2 and SIGWINCH go to it; when it ends, so do we, with
its exit code (128+N after signal N, also where that came before COMMAND was started).`,
		Example: `  ambassador run -c ambassador.yaml
  ambassador run -c ambassador.yaml --watch
  ambassador run -c ambassador.yaml -- ./legacy-app --db 127.0.0.1:5432`,
		Args: onlyAfterDash,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := flags.check(cmd); err != nil {
				return err
			}
			found, err := config.Find(path)
			if err != nil {
				return &program.ExitError{Code: 2, Err: err}
			}
			if err := checkWait(cmd, wait, args); err != nil {
				return usageError(cmd, err)
			}
			if watch && program.IsPipe(found) {
				return usageError(cmd, fmt.Errorf("--watch: %s is a pipe, which cannot be read again; give a regular file", found))
			}
			opts := process.FileOptionsAfter(a.handover, found, a.Env, watch, func(f *config.File) { flags.apply(cmd, f) })
			f, err := opts.Load()
			if err != nil {
				return err
			}
			if flags.printConfig {
				return f.PrintYAML(a.Stdout)
			}
			opts.Command, opts.WaitTimeout = args, wait
			return process.Run(cmd.Context(), a.World, f, opts)
		},
	}
	flags.bind(cmd)
	cmd.Flags().StringVarP(&path, "config", "c", "", "the configuration file (default ./ambassador.yaml, then /etc/ambassador/ambassador.yaml)")
	cmd.Flags().DurationVar(&wait, "wait-timeout", 5*time.Minute, "how long COMMAND waits for the required upstreams; then it is an error. 0: without end")
	cmd.Flags().BoolVar(&watch, "watch", false, "reload when the configuration file changes")
	return cmd
}

// checkWait returns an error if --wait-timeout cannot be what was meant.
func checkWait(cmd *cobra.Command, wait time.Duration, command []string) error {
	switch {
	case wait < 0:
		return fmt.Errorf("--wait-timeout %v: give a duration above zero, or 0 for no bound", wait)
	case len(command) == 0 && cmd.Flags().Changed("wait-timeout"):
		return errors.New("--wait-timeout: there is no COMMAND that waits; give -- COMMAND, or remove it")
	}
	return nil
}

// onlyAfterDash requires "--" before every argument, so that the value of a mistyped
// flag is not taken for COMMAND.
func onlyAfterDash(cmd *cobra.Command, args []string) error {
	if dash := cmd.ArgsLenAtDash(); len(args) > 0 && dash != 0 {
		return fmt.Errorf("unexpected %q: COMMAND comes after --", args[0])
	}
	return nil
}
