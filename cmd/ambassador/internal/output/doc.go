// Package output writes what people and programs read of us: lines, tables and JSON in
// which nothing that clients, servers or files said can break a line or speak to a
// terminal.
//
// It knows no configuration, no admin API and no process: it is given texts and values.
package output
