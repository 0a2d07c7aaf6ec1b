package api

import (
	"fmt"
	"strings"
	"time"

	"ambassador/l4"
	"ambassador/l4/outcome"
)

// The paths of the API.
const (
	PathLive       = "/livez"
	PathReady      = "/readyz"
	PathMetrics    = "/metrics"
	PathStatus     = "/v1/status"
	PathSessions   = "/v1/sessions"
	PathRecent     = "/v1/sessions/recent"
	PathKill       = "/v1/sessions/{id}/kill"
	PathUpstreams  = "/v1/upstreams"
	PathIdentities = "/v1/identities"
	PathConfig     = "/v1/config"
	PathReload     = "/v1/reload"
	PathDrain      = "/v1/drain"
	PathQuit       = "/v1/quit"
)

// ReloadTimeout is how long a reload may take: it contacts no other host, but the
// files may be many.
const ReloadTimeout = 30 * time.Second

// Status is the answer of /v1/status.
type Status struct {
	Version    string              `json:"version"`
	PID        int                 `json:"pid"`
	Started    time.Time           `json:"started"`
	Readiness  l4.Readiness        `json:"readiness"`
	Listeners  []Listener          `json:"listeners"`
	Upstreams  []l4.UpstreamStatus `json:"upstreams"`
	Identities []Identity          `json:"identities"`
	UsersFiles []UsersFile         `json:"users_files,omitempty"`
	Sandbox    *Sandbox            `json:"sandbox,omitempty"`
	// Sessions are open; the bytes are those of ended ones too.
	Sessions  int   `json:"sessions"`
	BytesUp   int64 `json:"bytes_up"`
	BytesDown int64 `json:"bytes_down"`
}

// Listener is a listener as the API tells of it. Rules is how many it has.
type Listener struct {
	l4.ListenerStatus
	Rules int `json:"rules,omitempty"`
}

// Identity is certs.Status as the API tells it.
type Identity struct {
	Name       string     `json:"name"`
	Ready      bool       `json:"ready"`
	Subject    string     `json:"subject,omitempty"`
	Names      []string   `json:"names"`
	Serial     string     `json:"serial,omitempty"`
	Issuer     string     `json:"issuer,omitempty"`
	NotBefore  *time.Time `json:"not_before,omitempty"`
	NotAfter   *time.Time `json:"not_after,omitempty"`
	Generation uint64     `json:"generation"`
	// NextRenewal is when the issuer is asked next; not there if it comes by itself.
	NextRenewal *time.Time `json:"next_renewal,omitempty"`
	Loads       int64      `json:"loads"`
	Failures    int64      `json:"failures"`
	LastError   string     `json:"last_error,omitempty"`
	LastErrorAt *time.Time `json:"last_error_at,omitempty"`
}

// Sessions is the answer of /v1/sessions and /v1/sessions/recent.
type Sessions struct {
	Sessions []outcome.Record `json:"sessions"`
}

// UsersFile is a users_file as the API tells of it.
type UsersFile struct {
	File   string    `json:"file"`
	Users  int       `json:"users"`
	Loaded time.Time `json:"loaded"`
	// LastError says why the file, as it is now, is not in use; empty if it is.
	LastError   string     `json:"last_error,omitempty"`
	LastErrorAt *time.Time `json:"last_error_at,omitempty"`
}

// Sandbox is what the kernel enforces, as the API tells it.
type Sandbox struct {
	// ABI is the version of Landlock; 0 where nothing is enforced.
	ABI int `json:"landlock_abi"`
	// Enforced are of files, bind, connect.
	Enforced []string `json:"enforced"`
	// Reason is why not all of it is enforced.
	Reason string `json:"reason,omitempty"`
}

// String is the same for people.
func (r Sandbox) String() string {
	if len(r.Enforced) == 0 {
		return "off: " + r.Reason
	}
	text := fmt.Sprintf("landlock ABI %d: %s", r.ABI, strings.Join(r.Enforced, ", "))
	if r.Reason != "" {
		text += " (" + r.Reason + ")"
	}
	return text
}

// Upstreams is the answer of PathUpstreams.
type Upstreams struct {
	Upstreams []l4.UpstreamStatus `json:"upstreams"`
}

// Identities is the answer of PathIdentities.
type Identities struct {
	Identities []Identity `json:"identities"`
}

// Reloaded is the answer of PathReload.
type Reloaded struct {
	Reloaded bool `json:"reloaded"`
}

// Draining is the answer of PathDrain.
type Draining struct {
	Draining bool `json:"draining"`
	Sessions int  `json:"sessions"` // that are open
}

// Quitting is the answer of PathQuit.
type Quitting struct {
	Quitting bool `json:"quitting"`
	Sessions int  `json:"sessions"` // that are open
}

// Killed is the answer of PathKill.
type Killed struct {
	Killed string `json:"killed"` // the session's id
}

// Error is what a refused request is answered with.
type Error struct {
	Status int      `json:"-"`
	Text   string   `json:"error"`
	Hint   string   `json:"hint,omitempty"`
	Paths  []string `json:"paths,omitempty"`
}

func (e *Error) Error() string { return e.Text }

// Ready is what `wait --json` prints.
type Ready struct {
	Ready   bool     `json:"ready"`
	Waiting []string `json:"waiting"`
}
