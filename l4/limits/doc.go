// Package limits bounds what each client may have: how many sessions at a time and a
// second (Limiter), when it is its turn (Turns), what its sessions hold in memory
// (Metered), and which of them end if all together hold too much (Largest). Clients are
// told apart by policy.Source.
package limits
