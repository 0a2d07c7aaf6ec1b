package main

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/keyhelp"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/starttls"
)

// helpCommand is cobra's help command with the topics of the manual and the man page. A
// name that is neither a command nor a topic is an error.
func helpCommand() *cobra.Command {
	var man bool
	cmd := &cobra.Command{
		Use: "help [COMMAND|TOPIC]", Short: "Explain a command, or print a chapter of the manual",
		Long: "Explains a command, or prints a chapter of the manual, in Markdown. The topics are:\n\n" + topicList() + `
--man prints the man page ambassador(1) instead, made from the same texts as the help
of each command.`,
		Example: `  ambassador help forward
  ambassador help egress
  ambassador help --man > ambassador.1 && man ./ambassador.1`,
		ValidArgsFunction: completeHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			if man {
				if len(args) > 0 {
					return usageError(cmd, errors.New("--man prints one page about all commands; give no COMMAND or TOPIC with it"))
				}
				_, err := io.WriteString(cmd.OutOrStdout(), manPage(cmd.Root()))
				return err
			}
			return printHelp(cmd, args)
		},
	}
	cmd.Flags().BoolVar(&man, "man", false, "print the man page, in roff")
	return cmd
}

// printHelp prints the help of a command or topic, or of the program.
func printHelp(help *cobra.Command, args []string) error {
	root := help.Root()
	if len(args) == 1 {
		if text, ok := manual(args[0]); ok {
			_, err := io.WriteString(help.OutOrStdout(), text)
			return err
		}
	}
	about, rest, err := root.Find(args)
	if err != nil || len(rest) > 0 {
		if near := helpNear(args[0]); near != "" {
			return usageError(root, fmt.Errorf("unknown command or topic %q; did you mean `ambassador %s`?", args[0], near))
		}
		return unknownCommand(root, args)
	}
	about.InitDefaultHelpFlag()
	about.InitDefaultVersionFlag()
	return about.Help()
}

// helpNear is what was probably meant by a name that is neither a command nor a topic: a topic,
// or a key of the configuration; empty if neither is near.
func helpNear(name string) string {
	for _, t := range topics() {
		if d := output.Distance(name, t.name); d < 3 && 2*d <= len(name) {
			return "help " + t.name
		}
	}
	if _, err := keyhelp.Find(config.Schema, name); err == nil && name != "" {
		return "explain " + name
	}
	return ""
}

// listTopics adds the topics to the help of the root command only. Other commands
// inherit its template.
func listTopics(root *cobra.Command) {
	root.SetHelpTemplate(root.HelpTemplate() + `{{if not .HasParent}}
Topics of the manual (ambassador help TOPIC):
` + topicList() + "{{end}}")
}

func completeHelp(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	at, all := cmd.Root(), []cobra.Completion(nil)
	if len(args) == 0 {
		for _, t := range topics() {
			all = append(all, cobra.CompletionWithDesc(t.name, t.about))
		}
	} else if found, rest, err := at.Find(args); err != nil || len(rest) > 0 || found == at {
		return nil, cobra.ShellCompDirectiveNoFileComp
	} else {
		at = found
	}
	for _, c := range at.Commands() {
		if c.IsAvailableCommand() {
			all = append(all, cobra.CompletionWithDesc(c.Name(), c.Short))
		}
	}
	return all, cobra.ShellCompDirectiveNoFileComp
}

// completeValues lets the shell complete flag values: those of fixed lists, and file
// names only for flags that take a file. A flag has the same meaning with every
// command.
func completeValues(root *cobra.Command) {
	values := map[string][]cobra.Completion{
		"starttls":   starttls.Names(),
		"log-level":  {"debug", "info", "warn", "error"},
		"log-format": {"auto", "text", "json"},
	}
	files := []string{"config", "cert", "key", "ca", "users", "token-file", "password-file", "storage", "tests", "pkcs12", "file"}
	for _, c := range everyCommand(root) {
		if c.ValidArgsFunction == nil && c.Name() != "run" { // the arguments of run are COMMAND
			c.ValidArgsFunction = cobra.NoFileCompletions
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			switch {
			case f.Name == "config":
				must(c.MarkFlagFilename(f.Name, "yaml", "yml"))
			case f.Name == "storage", f.Name == "output-dir":
				must(c.MarkFlagDirname(f.Name))
			case values[f.Name] != nil:
				must(c.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(values[f.Name], cobra.ShellCompDirectiveNoFileComp)))
			case hasCompletion(c, f.Name):
			case f.Value.Type() != "bool" && !slices.Contains(files, f.Name):
				must(c.RegisterFlagCompletionFunc(f.Name, cobra.NoFileCompletions))
			}
		})
	}
}

// hasCompletion reports whether the command itself completes the flag's value.
func hasCompletion(c *cobra.Command, flag string) bool {
	_, has := c.GetFlagCompletionFunc(flag)
	return has
}

// must panics if a flag's completion cannot be registered: the flag is missing, or it
// is registered twice.
func must(err error) {
	if err != nil {
		panic("ambassador: internal error: completion: " + err.Error())
	}
}
