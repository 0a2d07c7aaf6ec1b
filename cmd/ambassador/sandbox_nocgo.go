//go:build !cgo

package main

// systemLibraries is empty: a static binary loads none.
var systemLibraries []string
