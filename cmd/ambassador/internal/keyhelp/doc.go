// Package keyhelp explains one key of the configuration file: its type, its default, an
// example, and the keys below it. It knows them from the JSON Schema, so that it can say
// nothing else.
package keyhelp
