// Command bench compares the ambassador with haproxy, nginx and microsocks, where they
// are installed, or with an older ambassador. All take turns on loopback, round by
// round, and one table says how they compare:
//
//	go run ./integration/bench
//	go run ./integration/bench -against ./ambassador-old -rows 'mtls/*'
//
// Each figure is the median of the rounds, ours divided by the best of the others: CPU
// and latencies below 1, and throughput above 1, are better than the best. The machine
// must have nothing else to do. Load and target run in this process, on the same
// processors as the program under test; the CPU time is that of the program alone.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	binary, against, rows string
	rounds                int
	duration              time.Duration
}

func run(args []string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&o.binary, "binary", "", "the ambassador to measure; by default it is built from this repository")
	flags.StringVar(&o.against, "against", "", "compare with this older ambassador, and with nothing else")
	flags.StringVar(&o.rows, "rows", "*/*", "the rows to measure, a pattern like 'mtls/*' or '*/conn'")
	flags.IntVar(&o.rounds, "rounds", 5, "rounds; in each, every program has its turn in every row")
	flags.DurationVar(&o.duration, "duration", 300*time.Millisecond, "how long one turn is")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch _, err := path.Match(o.rows, ""); {
	case err != nil:
		return fmt.Errorf("-rows %q is no pattern: %w", o.rows, err)
	case flags.NArg() > 0:
		return fmt.Errorf("%q is no flag; see -help", flags.Arg(0))
	case o.rounds < 1 || o.duration <= 0:
		return errors.New("-rounds and -duration must be positive")
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.binary == "" {
		if o.binary, err = build(dir); err != nil {
			return err
		}
	}
	return bench(o, dir, out)
}

// build builds the ambassador of the module that contains the current folder.
func build(dir string) (string, error) {
	binary := filepath.Join(dir, "ambassador")
	cmd := exec.Command("go", "build", "-trimpath", "-o", binary, "ambassador/cmd/ambassador")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, text)
	}
	return binary, nil
}

// bench measures mode by mode, and prints the table.
func bench(o options, dir string, out io.Writer) error {
	certs, err := makeCerts(dir)
	if err != nil {
		return err
	}
	target, err := startTarget(certs)
	if err != nil {
		return err
	}
	defer target.close()
	programs, err := choose(o, out)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "\tCPU\tthroughput\tp50\tp99\tours: CPU\tthroughput\tp50\tp99\t")
	for _, mode := range modes {
		if !slices.ContainsFunc(kinds, func(k kind) bool { return matches(o.rows, mode, k) }) {
			continue
		}
		if err := benchMode(o, mode, programs, target, certs, filepath.Join(dir, mode), table); err != nil {
			return fmt.Errorf("%s: %w", mode, err)
		}
	}
	return table.Flush()
}

func matches(pattern, mode string, k kind) bool {
	ok, _ := path.Match(pattern, mode+"/"+k.name)
	return ok
}

// benchMode starts the programs in a mode, and measures its rows.
func benchMode(o options, mode string, programs []program, target *target, certs certs, dir string, table io.Writer) error {
	var all []*running
	defer func() {
		for _, r := range all {
			r.stop()
		}
	}()
	for _, p := range programs {
		if p.commands[mode] == nil {
			continue
		}
		r, err := p.start(mode, filepath.Join(dir, p.name), target, certs)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		all = append(all, r)
	}
	for _, k := range kinds {
		if !matches(o.rows, mode, k) {
			continue
		}
		samples := make([][]sample, len(all))
		for range o.rounds {
			for i, r := range all {
				s, err := r.measure(k, o.duration)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", k.name, r.name, err)
				}
				samples[i] = append(samples[i], s)
			}
		}
		printRow(table, mode+"/"+k.name, k, samples)
	}
	return nil
}

// sample is what one turn has measured. A zero is not measured.
type sample struct{ cpu, rate, p50, p99 float64 }

// columns are the measures, in the order of the table.
var columns = []struct {
	of   func(sample) float64
	best func(...float64) float64
}{
	{func(s sample) float64 { return s.cpu }, lowest},
	{func(s sample) float64 { return s.rate }, highest},
	{func(s sample) float64 { return s.p50 }, lowest},
	{func(s sample) float64 { return s.p99 }, lowest},
}

func lowest(v ...float64) float64  { return slices.Min(v) }
func highest(v ...float64) float64 { return slices.Max(v) }

// printRow prints a row; ours are the first samples.
func printRow(w io.Writer, name string, k kind, samples [][]sample) {
	fmt.Fprint(w, name, "\t")
	var ours []float64
	for _, c := range columns {
		var medians []float64
		for _, rounds := range samples {
			medians = append(medians, median(rounds, c.of))
		}
		ours = append(ours, medians[0])
		if len(medians) == 1 || medians[0] == 0 {
			fmt.Fprint(w, "-\t")
			continue
		}
		fmt.Fprintf(w, "%.2f\t", medians[0]/c.best(medians[1:]...))
	}
	for i, v := range ours {
		if v == 0 {
			fmt.Fprint(w, "-\t")
			continue
		}
		fmt.Fprintf(w, k.formats[i]+"\t", v)
	}
	fmt.Fprintln(w)
}

func median(rounds []sample, of func(sample) float64) float64 {
	v := make([]float64, len(rounds))
	for i, s := range rounds {
		v[i] = of(s)
	}
	slices.SortFunc(v, cmp.Compare)
	return (v[len(v)/2] + v[(len(v)-1)/2]) / 2
}
