package relay

import "fmt"

// MarkError is a socket that cannot be marked.
type MarkError struct {
	Mark int
	Err  error
}

// Error says what is missing.
func (e *MarkError) Error() string {
	return fmt.Sprintf("mark a socket with %d (SO_MARK): %v; it needs Linux and CAP_NET_ADMIN: AmbientCapabilities=CAP_NET_ADMIN in the unit, or setcap cap_net_admin+ep on the binary", e.Mark, e.Err)
}

// Unwrap is the system's error.
func (e *MarkError) Unwrap() error { return e.Err }
