package relay

import "fmt"

// MarkError says that a socket cannot be marked.
type MarkError struct {
	Mark int
	Err  error
}

// Error says which permission is missing.
func (e *MarkError) Error() string {
	return fmt.Sprintf("mark a socket with %d (SO_MARK): %v; it needs Linux and CAP_NET_ADMIN: AmbientCapabilities=CAP_NET_ADMIN in the unit, or setcap cap_net_admin+ep on the binary", e.Mark, e.Err)
}

// Unwrap returns the system's error.
func (e *MarkError) Unwrap() error { return e.Err }
