package main

import (
	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/config"
)

func (a *app) schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of the configuration file", Args: cobra.NoArgs,
		Long:    "Prints the JSON Schema of the configuration file: every key with its unit and its default.",
		Example: "  ambassador schema > ambassador.schema.json",
		RunE: func(*cobra.Command, []string) error {
			_, err := a.Stdout.Write(config.Schema)
			return err
		},
	}
}
