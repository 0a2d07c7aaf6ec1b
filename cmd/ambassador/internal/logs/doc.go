// Package logs is the log of a process: lines for people on a terminal, else text or JSON,
// on standard error. It is written in the background, so that its reader never delays a
// connection.
//
// It decides how a line is written, at which level a session is, and which repeated
// failures a terminal is spared; not what is logged.
package logs
