// Package cli has the commands that speak to a running ambassador: status, sessions, why,
// wait, reload, drain and quit.
//
// It knows an ambassador by its admin API alone: it imports neither its configuration nor
// its process.
package cli
