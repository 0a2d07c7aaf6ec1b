package main

import (
	"fmt"
	"strings"
	"time"

	"ambassador/l4"
)

// The paths of the API.
const (
	pathLive       = "/livez"
	pathReady      = "/readyz"
	pathMetrics    = "/metrics"
	pathStatus     = "/v1/status"
	pathSessions   = "/v1/sessions"
	pathRecent     = "/v1/sessions/recent"
	pathKill       = "/v1/sessions/{id}/kill"
	pathUpstreams  = "/v1/upstreams"
	pathIdentities = "/v1/identities"
	pathConfig     = "/v1/config"
	pathReload     = "/v1/reload"
	pathDrain      = "/v1/drain"
	pathQuit       = "/v1/quit"
)

// adminReloadTimeout is how long a reload may take: it contacts no other host, but the
// files may be many.
const adminReloadTimeout = 30 * time.Second

// statusReply is the answer of /v1/status.
type statusReply struct {
	Version    string              `json:"version"`
	PID        int                 `json:"pid"`
	Started    time.Time           `json:"started"`
	Readiness  l4.Readiness        `json:"readiness"`
	Listeners  []listenerReply     `json:"listeners"`
	Upstreams  []l4.UpstreamStatus `json:"upstreams"`
	Identities []identityReply     `json:"identities"`
	UsersFiles []usersReply        `json:"users_files,omitempty"`
	Sandbox    *sandboxReply       `json:"sandbox,omitempty"`
	// Sessions are open; the bytes are those of ended ones too.
	Sessions  int   `json:"sessions"`
	BytesUp   int64 `json:"bytes_up"`
	BytesDown int64 `json:"bytes_down"`
}

// listenerReply is a listener as the API tells of it. Rules is how many it has.
type listenerReply struct {
	l4.ListenerStatus
	Rules int `json:"rules,omitempty"`
}

// identityReply is certs.Status as the API tells it.
type identityReply struct {
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

// sessionsReply is the answer of /v1/sessions and /v1/sessions/recent.
type sessionsReply struct {
	Sessions []l4.Record `json:"sessions"`
}

// usersReply is a users_file as the API tells of it.
type usersReply struct {
	File   string    `json:"file"`
	Users  int       `json:"users"`
	Loaded time.Time `json:"loaded"`
	// LastError says why the file, as it is now, is not in use; empty if it is.
	LastError   string     `json:"last_error,omitempty"`
	LastErrorAt *time.Time `json:"last_error_at,omitempty"`
}

// sandboxReply is what the kernel enforces, as the API tells it.
type sandboxReply struct {
	// ABI is the version of Landlock; 0 where nothing is enforced.
	ABI int `json:"landlock_abi"`
	// Enforced are of files, bind, connect.
	Enforced []string `json:"enforced"`
	// Reason is why not all of it is enforced.
	Reason string `json:"reason,omitempty"`
}

// String is the same for people.
func (r sandboxReply) String() string {
	if len(r.Enforced) == 0 {
		return "off: " + r.Reason
	}
	text := fmt.Sprintf("landlock ABI %d: %s", r.ABI, strings.Join(r.Enforced, ", "))
	if r.Reason != "" {
		text += " (" + r.Reason + ")"
	}
	return text
}

// upstreamsReply is the answer of pathUpstreams.
type upstreamsReply struct {
	Upstreams []l4.UpstreamStatus `json:"upstreams"`
}

// identitiesReply is the answer of pathIdentities.
type identitiesReply struct {
	Identities []identityReply `json:"identities"`
}

// reloadReply is the answer of pathReload.
type reloadReply struct {
	Reloaded bool `json:"reloaded"`
}

// drainReply is the answer of pathDrain.
type drainReply struct {
	Draining bool `json:"draining"`
	Sessions int  `json:"sessions"` // that are open
}

// quitReply is the answer of pathQuit.
type quitReply struct {
	Quitting bool `json:"quitting"`
	Sessions int  `json:"sessions"` // that are open
}

// killReply is the answer of pathKill.
type killReply struct {
	Killed string `json:"killed"` // the session's id
}

// apiError is what a refused request is answered with.
type apiError struct {
	Status int      `json:"-"`
	Text   string   `json:"error"`
	Mend   string   `json:"mend,omitempty"`
	Paths  []string `json:"paths,omitempty"`
}

func (e *apiError) Error() string { return e.Text }

// readyReply is what `wait --json` prints.
type readyReply struct {
	Ready   bool     `json:"ready"`
	Waiting []string `json:"waiting"`
}
