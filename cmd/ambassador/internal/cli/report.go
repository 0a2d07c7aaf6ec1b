package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/report"
)

func (a *commands) reportCommand() *cobra.Command {
	asFlags := false
	cmd := a.clientCommand("report", "Print what rules with report would deny, as rules that allow it",
		"  ambassador report\n  ambassador report --allow\n  ambassador report --json", cobra.NoArgs,
		func(ctx context.Context, f *adminFlags, _ []string) error {
			return a.askEach(ctx, f, api.PathReport, func(body []byte) error {
				var r report.Report
				if err := decode(api.PathReport, body, &r); err != nil {
					return err
				}
				return writeReport(a.Stdout, r, asFlags)
			})
		})
	cmd.Long = `Print what rules with report (socks5 --report) have allowed and would deny, since the
start of the process, as rules that allow it. Put them before the rule with report, and
replace that by a deny.

Special addresses (loopback, private, link-local, metadata and others) are comments: a
rule for one opens it, so decide about each.`
	cmd.Flags().BoolVar(&asFlags, "allow", false, "print --allow flags of socks5 instead of rules")
	return cmd
}

func writeReport(w io.Writer, r report.Report, asFlags bool) error {
	p := &output.Report{}
	switch {
	case len(r.Entries) == 0:
		p.Linef("# no session was allowed by a rule with report since %s", r.Since.Local().Format("2006-01-02 15:04:05 MST"))
	case asFlags:
		r.WriteFlags(p)
	default:
		r.WriteRules(p)
	}
	r.WriteOverflow(p)
	_, err := io.WriteString(w, p.String())
	return err
}
