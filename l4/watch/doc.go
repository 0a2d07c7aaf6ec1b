// Package watch detects a client that resets its connection while its session is being
// established, so that an attempt in flight is not continued for nothing.
package watch
