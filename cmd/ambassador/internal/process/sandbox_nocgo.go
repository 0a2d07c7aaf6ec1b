//go:build !cgo

package process

// systemLibraries is empty: a static binary loads no libraries.
var systemLibraries []string
