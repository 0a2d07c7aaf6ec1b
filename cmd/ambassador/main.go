package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ambassador/cmd/ambassador/internal/cli"
	"ambassador/cmd/ambassador/internal/handover"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/program"
)

func main() {
	os.Exit(runAlone())
}

// runAlone is run as the only work of the process.
func runAlone() int {
	a := &app{World: program.World{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Env: os.LookupEnv, Version: buildVersion(), Alone: true}}
	var err error
	if a.handover, err = handover.Receive(a.World); err != nil {
		fmt.Fprintf(a.Stderr, "ambassador: %s\n", output.VisibleLines(err.Error()))
		return 1
	}
	defer a.handover.Recover()
	code := a.execute(context.Background(), os.Args[1:])
	a.handover.GoBack(fmt.Errorf("it ended with exit code %d before it took over", code))
	return code
}

// app holds what the commands share.
type app struct {
	program.World
	handover *handover.Received // nil: no program was before this one in the process
}

// run is the whole program. It may share the process with other code, and returns the
// exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{World: program.World{Stdin: stdin, Stdout: stdout, Stderr: stderr, Env: os.LookupEnv, Version: buildVersion()}}
	return a.execute(ctx, args)
}

func (a *app) execute(ctx context.Context, args []string) int {
	root := a.rootCommand()
	running := false
	for _, c := range everyCommand(root) {
		if body := c.RunE; body != nil {
			c.RunE = func(cmd *cobra.Command, args []string) error {
				running = true
				return body(cmd, args)
			}
		}
	}
	if args == nil {
		args = []string{} // nil would mean os.Args
	}
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var exit *program.ExitError
	switch {
	case errors.As(err, &exit):
	case !running: // an error before a command begins is an error in the command line
		errors.As(mistake(cmd, args, err), &exit)
	default:
		exit = &program.ExitError{Code: 1, Err: err}
	}
	if exit.Err != nil {
		fmt.Fprintf(a.Stderr, "ambassador: %s\n", output.VisibleLines(exit.Err.Error()))
	}
	return exit.Code
}

// usageError is an error in the command line.
func usageError(cmd *cobra.Command, err error) *program.ExitError {
	return &program.ExitError{Code: 2, Err: fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())}
}

// mistake explains why the command line args was refused. Cobra parses the flags before it
// looks at the name of an unknown command.
func mistake(cmd *cobra.Command, args []string, err error) error {
	if !cmd.HasParent() && len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		return unknownCommand(cmd, args)
	}
	var flag *pflag.NotExistError
	if errors.As(err, &flag) && len(flag.GetSpecifiedName()) > 2*cmd.Root().SuggestionsMinimumDistance { // anything is similar to a shorter name
		if near := similarFlag(cmd, flag.GetSpecifiedName()); near != "" {
			err = fmt.Errorf("%w; did you mean --%s?", err, near)
		}
	}
	return usageError(cmd, err)
}

// similarFlag returns the command's flag whose name is the most similar; empty if none is.
func similarFlag(cmd *cobra.Command, name string) string {
	names := &cobra.Command{SuggestionsMinimumDistance: cmd.Root().SuggestionsMinimumDistance}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
		}
	})
	if near := names.SuggestionsFor(name); len(near) > 0 {
		return near[0]
	}
	return ""
}

// everyCommand returns c and all commands below it.
func everyCommand(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		all = append(all, everyCommand(sub)...)
	}
	return all
}

// The sections of `ambassador help`.
const (
	groupRun   = "run"
	groupWrite = "write"
	groupAsk   = "ask"
)

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "ambassador",
		Short: "Makes the network connections of a program that cannot be changed",
		Long: `The ambassador makes the network connections of a program that cannot be changed:
the program speaks plain TCP to it, and it opens the connection with mutual TLS,
after STARTTLS where the protocol wants it. It splices the bytes and never reads
them, and it says of every connection how it ended and why.`,
		Example: `  # See it work: a private CA, a service that demands certificates, a plain port before it
  ambassador demo

  # A PostgreSQL client that knows no TLS, a server that takes only certificates
  ambassador forward --listen 127.0.0.1:5433 --to db.internal:5432 --starttls postgres \
      --cert client.crt --key client.key --ca ca.crt

  # The one door out of a host: a SOCKS5 proxy to what is allowed
  ambassador socks5 --listen 127.0.0.1:1080 --allow '*.example.com:443'

  # Everything in a file, and the program that needs it, started once all is reached
  ambassador run -c ambassador.yaml -- ./legacy-app --db 127.0.0.1:5432`,
		Version:                    a.Version,
		SuggestionsMinimumDistance: 2,
		SilenceErrors:              true,
		SilenceUsage:               true,
		Args:                       unknownCommand,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.SetVersionTemplate("ambassador {{.Version}}\n")
	root.AddGroup(&cobra.Group{ID: groupRun, Title: "Run one:"},
		&cobra.Group{ID: groupWrite, Title: "Write its configuration:"},
		&cobra.Group{ID: groupAsk, Title: "Speak to a running one:"})
	addGroup(root, groupRun, a.forwardCommand(), a.socks5Command(), a.runCommand(), a.demoCommand(), a.caCommand())
	addGroup(root, groupWrite, a.checkCommand(), a.testCommand(), a.explainCommand(), a.schemaCommand(), a.printCommand(), a.kubeCommand())
	addGroup(root, groupAsk, cli.Commands(a.World)...)
	root.AddCommand(a.versionCommand())
	root.SetHelpCommand(helpCommand())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	explainCompletion(root)
	completeValues(root)
	listTopics(root)
	plainFlags(root)
	return root
}

// explainCompletion adds examples to cobra's completion command, and makes an unknown
// shell an error.
func explainCompletion(root *cobra.Command) {
	completion, _, err := root.Find([]string{"completion"})
	if err != nil {
		return
	}
	completion.Short = "Print the completion script for a shell: bash, zsh, fish or powershell"
	completion.Example = "  source <(ambassador completion bash)\n  ambassador completion zsh --help"
	completion.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() } // Args refuses arguments
	for _, shell := range completion.Commands() {
		shell.Short = "Print the completion script for " + shell.Name()
		shell.Example = "  ambassador completion " + shell.Name()
	}
}

func addGroup(root *cobra.Command, group string, commands ...*cobra.Command) {
	for _, c := range commands {
		c.GroupID = group
	}
	root.AddCommand(commands...)
}

// unknownCommand is the error for an unknown command. It suggests the most similar one.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q", args[0])
	if near := slices.Compact(cmd.SuggestionsFor(args[0])); len(near) > 0 {
		text += fmt.Sprintf("; did you mean `ambassador %s`?", near[0])
	}
	return usageError(cmd, errors.New(text))
}
