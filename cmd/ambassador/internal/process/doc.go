// Package process is the life of one running ambassador: it starts, reloads and drains a
// configuration, tells the service manager, confines itself to a sandbox, starts COMMAND,
// and connects the server with its log, its metrics and its admin API.
//
// It reads no flags and never exits: it returns the error that main exits with.
package process
