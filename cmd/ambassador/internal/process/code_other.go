//go:build !linux

package process

// mapping is a range of addresses: of Linux alone.
type mapping struct{}

func codeMappings() []mapping { return nil }

func dropPages([]mapping) {}
