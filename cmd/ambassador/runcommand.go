package main

import (
	"fmt"

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
	cmd.Flags().StringVar(&f.logFormat, "log-format", "", "text or json (default: text on a terminal, else json)")
	cmd.Flags().BoolVar(&f.printConfig, "print-config", false, "print the configuration as YAML and exit")
}

// check returns errors in the flags.
func (f *serveFlags) check(cmd *cobra.Command) error {
	if _, err := logs.ParseLevel(f.logLevel); err != nil {
		return usageError(cmd, fmt.Errorf("--log-level: %w", err))
	}
	switch f.logFormat {
	case "", "text", "json":
		return nil
	}
	return usageError(cmd, fmt.Errorf("--log-format: %q is no format; use text or json", f.logFormat))
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
	return process.Run(cmd.Context(), a.World, f, opts)
}

// runCommand returns the command `run`.
func (a *app) runCommand() *cobra.Command {
	var (
		flags serveFlags
		path  string
		watch bool
	)
	cmd := &cobra.Command{
		Use: "run [-c FILE] [-- COMMAND …]", Short: "Run what a configuration file says, and a COMMAND that needs it",
		Long: `Runs what a configuration file says, until SIGTERM or SIGINT. A second one ends at
once; SIGHUP reloads the file.

With COMMAND, that is started once every required upstream has been reached. SIGTERM
and SIGINT go to it; when it ends, so do we, with its exit code (128+N after signal N).`,
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
			if watch && program.IsPipe(found) {
				return usageError(cmd, fmt.Errorf("--watch: %s is a pipe, which cannot be read again; give a regular file", found))
			}
			opts := process.FileOptions(found, a.Env, watch, func(f *config.File) { flags.apply(cmd, f) })
			f, err := opts.Load()
			if err != nil {
				return err
			}
			if flags.printConfig {
				return f.PrintYAML(a.Stdout)
			}
			opts.Command = args
			return process.Run(cmd.Context(), a.World, f, opts)
		},
	}
	flags.bind(cmd)
	cmd.Flags().StringVarP(&path, "config", "c", "", "the configuration file (default ./ambassador.yaml, then /etc/ambassador/ambassador.yaml)")
	cmd.Flags().BoolVar(&watch, "watch", false, "reload when the configuration file changes")
	return cmd
}

// onlyAfterDash requires "--" before every argument, so that the value of a mistyped
// flag is not taken for COMMAND.
func onlyAfterDash(cmd *cobra.Command, args []string) error {
	if dash := cmd.ArgsLenAtDash(); len(args) > 0 && dash != 0 {
		return fmt.Errorf("unexpected %q: COMMAND comes after --", args[0])
	}
	return nil
}
