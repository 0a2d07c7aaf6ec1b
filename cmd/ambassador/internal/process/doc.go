// Package process runs an ambassador: it starts, reloads and drains a configuration. It
// notifies the service manager, confines the process to a sandbox, and starts COMMAND.
// It connects the server with its log, its metrics and its admin API.
//
// It reads no flags and never exits: it returns the error with which main exits.
package process
