package l4

import (
	"ambassador/l4/ending"
	"ambassador/l4/outcome"
)

// The causes of (*session).stop.
var (
	errDownstreamGone = &ending.Stop{Reason: outcome.DownstreamReset, Text: "the client reset the connection before it was established"}
	errAddressDown    = &ending.Stop{Reason: outcome.Killed, Text: "the address became unhealthy, and health.kill_on_down is set", By: "health.kill_on_down"}
	errDrained        = &ending.Stop{Reason: outcome.Drained, Text: "idle while draining"}
	errDrainTimeout   = &ending.Stop{Reason: outcome.Shutdown, Text: "still busy at the end of drain.timeout"}
	errShutdown       = &ending.Stop{Reason: outcome.Shutdown, Text: "the ambassador was told to end at once"}
)

// errKilled is the cause of Kill.
func errKilled(by string) error {
	return &ending.Stop{Reason: outcome.Killed, Text: "killed through the admin API", By: by}
}
