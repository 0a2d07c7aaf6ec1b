// Package evicted keeps, in bounded memory, the breakers of destinations that a cache has
// evicted: a client that names many destinations must not close the open breaker of one.
package evicted
