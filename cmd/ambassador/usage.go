package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// plainFlags lists the boolean flags in all help texts as "--help". Pflag lists them as
// "--help[=true|false]", which makes every list of flags wide and says nothing.
func plainFlags(root *cobra.Command) {
	cobra.AddTemplateFunc("flagUsages", flagUsages)
	template := root.UsageTemplate()
	for _, flags := range []string{".LocalFlags", ".InheritedFlags"} {
		template = strings.Replace(template, flags+".FlagUsages", flags+" | flagUsages", 1)
	}
	root.SetUsageTemplate(template)
}

// flagUsages is (*pflag.FlagSet).FlagUsages with plain boolean flags.
func flagUsages(f *pflag.FlagSet) string {
	plain := pflag.NewFlagSet("", pflag.ContinueOnError)
	plain.SortFlags = f.SortFlags
	f.VisitAll(func(flag *pflag.Flag) {
		c := *flag
		if c.Value.Type() == "bool" {
			c.Value = plainBool{c.Value}
		}
		plain.AddFlag(&c)
	})
	return plain.FlagUsages()
}

// plainBool is a boolean value of a type whose values pflag does not list.
type plainBool struct{ pflag.Value }

// Type is that of pflag.BoolFunc.
func (plainBool) Type() string { return "boolfunc" }
