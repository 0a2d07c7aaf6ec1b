//go:build !linux

package process

// losesCapabilities returns nil: only Linux has them.
func losesCapabilities() error { return nil }
