// Package config is the configuration: its keys, defaults and checks, its JSON Schema,
// and its translation for l4, certs and policy.
//
// It reads the file that it is given, and looks up a user or group by its name where
// socket.owner has one. It opens no other file and no socket: what a configuration names
// and does not hold (certificates, users, passwords, the answer to health.http) it is
// given, see Parts. Reading those files is secrets', and knowing what runs is process'.
package config
