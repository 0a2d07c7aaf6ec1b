package main

import (
	"io"

	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/report"
)

// writeReport prints what --report has allowed and --allow lacks, as flags and as rules.
func writeReport(w io.Writer, r report.Report) error {
	p := &output.Report{}
	if len(r.Entries) == 0 {
		p.Linef("# nothing was asked for that --allow does not have (%s)", output.Plural(r.Allowed, "session"))
	} else {
		p.Linef("# not in --allow, and allowed by --report:")
		r.WriteFlags(p)
		p.Linef("# the same as rules of a configuration file:")
		r.WriteRules(p)
		r.WriteOverflow(p)
	}
	_, err := io.WriteString(w, p.String())
	return err
}
