// Package logs is the log of a process: text or JSON on standard error, written in the
// background, so that its reader never delays a connection.
//
// It decides how a line is written and at which level a session is, not what is logged.
package logs
