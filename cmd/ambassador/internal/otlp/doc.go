// Package otlp sends sessions to an OpenTelemetry collector, over OTLP/HTTP in JSON: their
// records as log records, and sampled ones as spans. The official SDK would make the
// binary 6 MB larger.
//
// Promised: Session does not wait. What is kept for a collector that does not answer is
// bounded, for logs and for traces apart; what exceeds the bound is dropped and counted. A
// batch is repeated with a back-off after failures that OTLP calls retryable.
//
// Not promised: that a session arrives, or that it arrives once.
package otlp
