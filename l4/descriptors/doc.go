// Package descriptors says how many file descriptors the process may have, how many of
// them a configuration needs besides its sessions, and how many sessions that leaves.
package descriptors
