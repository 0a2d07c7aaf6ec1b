package ledger

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// The specification of endings. Each step is of one side, d or u: fin (plain), clean
// or cut; a write, our close_notify or a read that failed; passed: its FIN was.
func TestLedger(t *testing.T) {
	for _, tt := range []struct{ name, steps, want string }{
		{"both end", "d fin, d passed, u fin, u passed", "closed, first downstream"},
		{"the upstream ends first", "u fin, d fin, u passed, d passed", "closed, first upstream"},
		{"with close_notify", "d fin, d passed, u clean, u passed", "closed, first downstream"},
		{"without close_notify", "d fin, d passed, u cut, u passed", "closed, first downstream, truncated"},
		{"half-closed", "d fin, d passed", "goes on"},
		{"a FIN that is not passed on yet", "d fin, u fin, d passed", "goes on"},

		{"a reset", "d reads reset", "downstream reset, first downstream"},
		{"a loss", "u reads lost", "upstream lost, first upstream"},
		{"a reset after a FIN of the other side", "d fin, d passed, u reads reset", "upstream reset, first downstream"},

		{"refused bytes, nothing known yet", "u refuses reset", "goes on"},
		{"refused bytes, then its FIN", "u refuses reset, u fin", "upstream reset, first upstream"},
		{"refused bytes, then its close_notify", "u refuses reset, u clean", "upstream reset, first upstream"},
		{"refused bytes after its FIN", "u fin, u passed, u refuses reset", "upstream reset, first upstream"},
		{"refused bytes after its close_notify", "u clean, u passed, u refuses reset", "upstream reset, first upstream"},
		{"refused bytes by both", "u refuses reset, d refuses reset", "upstream reset, first upstream"},
		{"a write that is lost", "d refuses lost", "downstream lost, first downstream"},

		{"refused close_notify after its own", "u clean, u passed, d fin, u notify reset, d passed", "closed, first upstream"},
		{"refused close_notify before its own", "d fin, u notify reset, d passed, u clean, u passed", "closed, first downstream"},
		{"refused close_notify after a cut", "u cut, u passed, d fin, u notify reset", "upstream reset, first upstream, truncated"},
		{"refused close_notify before a cut", "d fin, u notify reset, d passed, u cut", "upstream reset, first downstream"},
		{"refused close_notify before a reset", "d fin, u notify reset, d passed, u reads reset", "upstream reset, first downstream"},
		{"close_notify that is lost", "d fin, u notify lost", "upstream lost, first downstream"},
		{"close_notify that is lost after its own", "u clean, u passed, d fin, u notify lost, d passed", "closed, first upstream"},
		{"refused close_notify, then bytes by the other side", "d clean, d passed, u notify reset, d refuses reset", "downstream reset, first downstream"},

		{"only the first ending counts", "d reads reset, u reads lost, u fin, u passed, d passed", "downstream reset, first downstream"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var l Ledger
			overs := 0
			for step := range strings.SplitSeq(tt.steps, ", ") {
				if ledgerStep(t, &l, step) {
					overs++
				}
			}
			got := "goes on"
			if l.Over {
				got = fmt.Sprintf("%v, first %v", l.Result.End, l.Result.FirstClose)
				if l.Result.Truncated {
					got += ", truncated"
				}
			}
			if got != tt.want || l.Over != (overs == 1) || l.Over != (l.Result != nil) {
				t.Errorf("%s: %s, over %d times; want %s", tt.steps, got, overs, tt.want)
			}
		})
	}
}

func ledgerStep(t *testing.T, l *Ledger, step string) (over bool) {
	t.Helper()
	side := map[byte]Side{'d': Downstream, 'u': Upstream}[step[0]]
	what, which, _ := strings.Cut(step[2:], " ")
	err := map[string]error{"reset": syscall.ECONNRESET, "lost": syscall.ETIMEDOUT}[which]
	switch what {
	case "fin":
		return l.FIN(side, FINPlain)
	case "clean":
		return l.FIN(side, FINClean)
	case "cut":
		return l.FIN(side, FINCut)
	case "passed":
		return l.Passed(side)
	case "reads":
		return l.Failed(side, err)
	case "refuses":
		return l.WriteFailed(side, err)
	case "notify":
		return l.NotifyFailed(side, err)
	}
	t.Fatalf("no step: %q", step)
	return false
}
