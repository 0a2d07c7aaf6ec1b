// Package metrics has the series of /metrics: counters of events, and collectors that
// ask a server for its state when they are scraped.
//
// It serves no HTTP itself and keeps no label value that a client chose.
package metrics
