package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/explain"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/cmd/ambassador/internal/secrets"
)

// checkReply is what `check --json` prints.
type checkReply struct {
	File     string         `json:"file"`
	OK       bool           `json:"ok"`
	Problems []checkProblem `json:"problems,omitempty"`
	Warnings []string       `json:"warnings,omitempty"`
	Notes    []string       `json:"notes,omitempty"`
}

type checkProblem struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Path   string `json:"path"`
	Text   string `json:"text"`
}

func (a *app) checkCommand() *cobra.Command {
	var (
		path, question, tests string
		asJSON                bool
	)
	cmd := &cobra.Command{
		Use: "check [-c FILE] [--explain QUESTION | --tests FILE]", Short: "Find every mistake in a configuration file, without running it; explain what its rules decide", Args: cobra.NoArgs,
		Long: `Reads the configuration and the files that it names, and reports every mistake in one
pass, each with its place and how to fix it. Nothing is listened on and nobody is contacted.
The exit code is 2 if there is a mistake.

--explain tells instead what the rules of a listener decide about a connection, and
why each rule before did not: 'dest=HOST:PORT client=IP user=NAME uid=NUMBER
principal=… sni=NAME listener=NAME', as far as they apply. A name is looked up only
where a rule depends on its addresses, unless addr=IP,… gives them. The exit code is 0
whatever they decide, and 2 for a question that makes no sense. With expect=allow,
expect=would_deny or expect=deny it is 3 if they decide otherwise.

--tests asks the questions of a file, a list like
- {user: batch, dest: "db.internal:5432", addr: 10.0.0.7, expect: allow}
and exits with 3 if one has another answer than expected; each is printed with its place.`,
		Example: `  ambassador check -c ambassador.yaml
  ambassador check --explain 'user=batch dest=db.internal:5432 client=10.1.2.3'
  ambassador check --explain 'listener=egress dest=db.internal:5432 addr=10.0.0.7'
  ambassador check --tests policy-tests.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := config.Find(path)
			if err != nil {
				return &program.ExitError{Code: 2, Err: err}
			}
			if cmd.Flags().Changed("tests") {
				return a.policyTests(cmd.Context(), found, tests, asJSON)
			}
			if cmd.Flags().Changed("explain") {
				return a.explain(cmd.Context(), found, question, asJSON)
			}
			return a.check(found, asJSON)
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "the configuration file (default ./ambassador.yaml, then /etc/ambassador/ambassador.yaml)")
	cmd.Flags().StringVar(&question, "explain", "", "say what the rules decide: 'dest=HOST:PORT user=NAME client=IP …'")
	cmd.Flags().StringVar(&tests, "tests", "", "file of questions, each with what the rules must decide")
	cmd.MarkFlagsMutuallyExclusive("explain", "tests")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) check(path string, asJSON bool) error {
	f, err := secrets.LoadFile(path, a.Env)
	if err == nil {
		err = config.ErrorOf(secrets.Check(f))
	}
	switch {
	case asJSON:
		return a.checkJSON(path, f, err)
	case err != nil:
		return &program.ExitError{Code: 2, Err: err}
	}
	warnings, notes := doubtsOf(f)
	for _, w := range warnings {
		fmt.Fprintf(a.Stdout, "warning: %s\n", output.Visible(w))
	}
	for _, n := range notes {
		fmt.Fprintf(a.Stdout, "note: %s\n", output.Visible(n))
	}
	_, err = fmt.Fprintf(a.Stdout, "%s: ok (%s, %s, %s)\n", output.Visible(path), output.Plural(len(f.Listeners), "listener"), output.Plural(len(f.Upstreams), "upstream"), count(len(f.Identities), "identity", "identities"))
	return err
}

// doubtsOf returns the warnings and notes of a file without mistakes, with their places.
func doubtsOf(f *config.File) (warnings, notes []string) {
	for _, w := range slices.Concat(f.Warnings(), f.Doubts(), secrets.Exposures(f), secrets.Withheld(f), secrets.Faults(f), secrets.Unused(f)) {
		warnings = append(warnings, f.Placed(w))
	}
	for _, n := range f.Notes() {
		notes = append(notes, f.Placed(n))
	}
	return warnings, notes
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func (a *app) checkJSON(path string, f *config.File, err error) error {
	reply := checkReply{File: path, OK: err == nil}
	var all *config.Error
	switch {
	case errors.As(err, &all):
		for _, p := range all.Problems {
			reply.Problems = append(reply.Problems, checkProblem(p))
		}
	case err != nil:
		reply.Problems = []checkProblem{{File: path, Text: err.Error()}}
	default:
		reply.Warnings, reply.Notes = doubtsOf(f)
	}
	if err := output.WriteJSON(a.Stdout, reply); err != nil {
		return err
	}
	if !reply.OK {
		return &program.ExitError{Code: 2}
	}
	return nil
}

// explain answers a question about the file's rules. The exit code is 2 if the question
// is invalid.
func (a *app) explain(ctx context.Context, path, text string, asJSON bool) error {
	f, err := secrets.LoadFile(path, a.Env)
	if err != nil {
		return &program.ExitError{Code: 2, Err: err}
	}
	q, err := explain.Ask(f, text)
	if err != nil {
		return &program.ExitError{Code: 2, Err: fmt.Errorf("--explain: %w", err)}
	}
	e, err := q.Answer(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		err = output.WriteJSON(a.Stdout, e)
	} else {
		err = e.Write(a.Stdout, q)
	}
	if wrong := e.Mismatch(q); wrong != "" && err == nil {
		return &program.ExitError{Code: 3, Err: errors.New(wrong)}
	}
	return err
}

// testsReply is what `check --tests FILE --json` prints.
type testsReply struct {
	File   string         `json:"file"`
	OK     bool           `json:"ok"`
	Tests  int            `json:"tests"`
	Failed []checkProblem `json:"failed,omitempty"`
}

// policyTests asks the questions of a file of tests. The exit code is 3 if an answer is
// not as expected, and 2 if a question is invalid.
func (a *app) policyTests(ctx context.Context, path, testsPath string, asJSON bool) error {
	f, err := secrets.LoadFile(path, a.Env)
	if err != nil {
		return &program.ExitError{Code: 2, Err: err}
	}
	tests, err := config.ReadPolicyTests(testsPath)
	if err != nil {
		return &program.ExitError{Code: 2, Err: err}
	}
	failed, problems := explain.Tests(ctx, f, tests)
	if err := config.ErrorOf(problems); err != nil {
		return &program.ExitError{Code: 2, Err: err}
	}
	if asJSON {
		reply := testsReply{File: testsPath, OK: len(failed) == 0, Tests: len(tests)}
		for _, p := range failed {
			reply.Failed = append(reply.Failed, checkProblem(p))
		}
		err = output.WriteJSON(a.Stdout, reply)
	} else {
		for _, p := range failed {
			fmt.Fprintln(a.Stdout, p.String())
		}
		result := "ok"
		if len(failed) > 0 {
			result = fmt.Sprintf("%d failed", len(failed))
		}
		_, err = fmt.Fprintf(a.Stdout, "%s: %s (%s)\n", output.Visible(testsPath), result, output.Plural(len(tests), "test"))
	}
	if err == nil && len(failed) > 0 {
		return &program.ExitError{Code: 3}
	}
	return err
}
