package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// app is what every command is given of the world.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            func(string) (string, bool)
}

// exitError is an error that decides the exit code: 2 for usage and
// configuration, that of COMMAND for `run -- COMMAND`. Others are 1. Err may be
// nil: there is nothing to say.
type exitError struct {
	Code int
	Err  error
}

func (e *exitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e *exitError) Unwrap() error { return e.Err }

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, env: os.LookupEnv}
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		exit = &exitError{Code: 1, Err: err}
	}
	if exit.Err != nil {
		fmt.Fprintf(stderr, "ambassador: %v\n", exit.Err)
	}
	return exit.Code
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "ambassador",
		Short: "Makes the network connections of a program that cannot be changed",
		Long: `The ambassador makes the network connections of a program that cannot be changed:
the program speaks plain TCP to it, and it opens the connection with mutual TLS,
after STARTTLS where the protocol wants it.`,
		Example: `  # Try it: a private CA, a service that wants certificates, and a plain port before it
  ambassador demo

  # A PostgreSQL client that knows no TLS, a server that takes only certificates
  ambassador forward --listen 127.0.0.1:5433 --to db.internal:5432 --starttls postgres \
      --cert client.crt --key client.key --ca ca.crt

  # Everything in a file
  ambassador run -c ambassador.yaml`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          unknownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError(cmd, err)
	})
	root.AddCommand(a.demoCommand(), a.runCommand(), a.forwardCommand(), a.checkCommand(), a.schemaCommand(), a.versionCommand(),
		a.statusCommand(), a.sessionsCommand(), a.whyCommand(), a.waitCommand(), a.reloadCommand(), a.drainCommand(), a.quitCommand())
	for _, c := range root.Commands() {
		if check := c.Args; check != nil {
			c.Args = func(cmd *cobra.Command, args []string) error {
				if err := check(cmd, args); err != nil {
					return usageError(cmd, err)
				}
				return nil
			}
		}
	}
	return root
}

// usageError is a mistake on the command line.
func usageError(cmd *cobra.Command, err error) error {
	return &exitError{Code: 2, Err: fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())}
}

// unknownCommand names the command that was probably meant.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += fmt.Sprintf("; did you mean `ambassador %s`?", near[0])
	}
	return usageError(cmd, errors.New(text))
}
