package main

import (
	"strings"

	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/keyhelp"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/program"
)

// explainCommand returns the command `explain`.
func (a *app) explainCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "explain [KEY.PATH]", Short: "Explain a key of the configuration file: its type, default, example, and the keys below it", Args: cobra.MaximumNArgs(1),
		Long: `Explains a key of the configuration file: its type, its default, an example, and the
keys below it. Names of your own may stand in the path or be left out, so that the path
in a message of check is good, too. Without a path it lists the sections of the file.`,
		Example: `  ambassador explain upstreams.health.fall
  ambassador explain listeners
  ambassador explain upstreams.orders_db.endpoints[0].weight`,
		ValidArgsFunction: completeKeys,
		RunE: func(_ *cobra.Command, args []string) error {
			key, err := keyhelp.Find(config.Schema, strings.Join(args, ""))
			if err != nil {
				return &program.ExitError{Code: 2, Err: err}
			}
			if asJSON {
				return output.WriteJSON(a.Stdout, key)
			}
			return key.Write(a.Stdout)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// completeKeys completes a path by one key.
func completeKeys(_ *cobra.Command, args []string, typed string) (all []cobra.Completion, d cobra.ShellCompDirective) {
	d = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	if len(args) > 0 {
		return nil, d
	}
	above := typed[:strings.LastIndexByte(typed, '.')+1]
	key, err := keyhelp.Find(config.Schema, above)
	if err != nil {
		return nil, d
	}
	for _, k := range key.Keys {
		about, _, _ := strings.Cut(k.Description, ". ")
		all = append(all, cobra.CompletionWithDesc(above+k.Path, about))
	}
	return all, d
}
