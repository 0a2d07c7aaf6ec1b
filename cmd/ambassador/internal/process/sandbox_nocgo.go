//go:build !cgo

package process

// systemLibraries is empty: a static binary loads none.
var systemLibraries []string
