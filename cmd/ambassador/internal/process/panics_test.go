package process

import (
	"io"
	"log/slog"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/logs"
	"ambassador/cmd/ambassador/internal/metrics"
)

func panicsHere() { panic("a bug") }

func TestPanicOfAReload(t *testing.T) {
	var log strings.Builder
	p := &Process{log: &logs.Log{Logger: slog.New(slog.NewTextHandler(&log, nil))}, metrics: metrics.New("v")}
	if err := p.survive(partReload, func() error { panicsHere(); return nil }); err == nil || !strings.Contains(err.Error(), "panic: a bug") {
		t.Errorf("the reload ended with %v", err)
	}
	if err := p.survive(partReload, func() error { return io.EOF }); err != io.EOF {
		t.Errorf("an error became %v", err)
	}
	if _, page := cmdtest.AskHandler(p.metrics.Handler(), "GET", "/metrics"); !strings.Contains(page, `ambassador_panics_total{part="reload"} 1`) {
		t.Error("the panic is not counted")
	}
	if text := log.String(); strings.Count(text, "msg=panic ") != 1 || !strings.Contains(text, "panicsHere") {
		t.Errorf("the log: %s", text)
	}
}
