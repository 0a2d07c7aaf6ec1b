package api

import (
	"fmt"
	"strings"
	"time"

	"ambassador/l4"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
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
	PathTry        = "/v1/upstreams/{name}/try"
	PathIdentities = "/v1/identities"
	PathReport     = "/v1/report" // a report.Report
	PathConfig     = "/v1/config"
	PathReload     = "/v1/reload"
	PathDrain      = "/v1/drain"
	PathQuit       = "/v1/quit"
	PathUpgrade    = "/v1/upgrade"
	PathPage       = "/"
	PathPageEvents = "/page/events"
	PathPageAsset  = "/page/{file}"
)

// ReloadTimeout is how long a reload may take: it contacts no other host, but the
// files may be many.
const ReloadTimeout = 30 * time.Second

// TryTimeout bounds the trials of one request of PathTry.
const TryTimeout = 30 * time.Second

// Status is the answer of /v1/status.
type Status struct {
	Version    string            `json:"version"`
	PID        int               `json:"pid"`
	Started    time.Time         `json:"started"`
	Readiness  l4.Readiness      `json:"readiness"`
	Listeners  []Listener        `json:"listeners"`
	Upstreams  []upstream.Status `json:"upstreams"`
	Identities []Identity        `json:"identities"`
	UsersFiles []UsersFile       `json:"users_files,omitempty"`
	Sandbox    *Sandbox          `json:"sandbox,omitempty"`
	LastReload *Reload           `json:"last_reload,omitempty"` // nil: there was none
	// LastUpgrade is the result of the last upgrade in place; nil: there was none.
	LastUpgrade *Upgrade `json:"last_upgrade,omitempty"`
	// Loaded is when the configuration in use was loaded.
	Loaded *time.Time `json:"configuration_loaded,omitempty"`
	// Sessions are open; the bytes are those of ended ones too.
	Sessions  int   `json:"sessions"`
	BytesUp   int64 `json:"bytes_up"`
	BytesDown int64 `json:"bytes_down"`
}

// Reload is the result of a reload. With an Error the old configuration is in use.
type Reload struct {
	At    time.Time `json:"at"`
	Error string    `json:"error,omitempty"`
}

// Upgrade is the result of an upgrade in place. With an Error the program before goes on.
type Upgrade struct {
	ID string    `json:"id"` // of UpgradePlan
	At time.Time `json:"at"`
	// From and To are the versions.
	From string `json:"from"`
	To   string `json:"to"`
	// Carried sessions go on, Ended ones could not be carried over.
	Carried int `json:"carried"`
	Ended   int `json:"ended"`
	// Pause is the time in which no byte moved.
	Pause outcome.Seconds `json:"pause"`
	Error string          `json:"error,omitempty"`
}

// UpgradePlan is the answer of PathUpgrade: what the upgrade that begins now, or would
// begin, does.
type UpgradePlan struct {
	ID     string `json:"id,omitempty"` // empty: nothing begins
	Binary string `json:"binary"`
	From   string `json:"from"`
	To     string `json:"to"`
	l4.Carriable
	// Wait bounds the wait for sessions that cannot be carried over; zero: there is none.
	Wait outcome.Seconds `json:"wait,omitempty"`
}

// The parameters of PathUpgrade.
const (
	UpgradeBinary = "binary"
	UpgradeDryRun = "dry_run"
	UpgradeWait   = "wait"
)

// Listener is a listener as the API shows it. Rules is how many it has; with rules,
// Upstream is empty.
type Listener struct {
	l4.ListenerStatus
	Rules    int    `json:"rules,omitempty"`
	Upstream string `json:"upstream,omitempty"`
	Sessions int    `json:"sessions"` // that are open
	// Failures is the number of sessions that ended in the last minute with a level above
	// info: by trouble, a denial or a limit. Only the last 4096 ended sessions count.
	Failures int `json:"failures_last_minute"`
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
	// Warnings are why peers may reject the certificate, and files that others may read.
	Warnings []string `json:"warnings,omitempty"`
}

// Sessions is the answer of /v1/sessions and /v1/sessions/recent.
type Sessions struct {
	Sessions []outcome.Record `json:"sessions"`
}

// UsersFile is a users_file as the API shows it.
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
	Upstreams []upstream.Status `json:"upstreams"`
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

// Tried is the answer of PathTry.
type Tried struct {
	Upstream string  `json:"upstream"`
	Trials   []Trial `json:"trials"`
}

// Trial is how the trial of an address went, or the lookup of an endpoint without one.
type Trial struct {
	Endpoint string          `json:"endpoint"`
	Address  string          `json:"address,omitempty"`
	OK       bool            `json:"ok"`
	Error    string          `json:"error,omitempty"`
	Seconds  outcome.Seconds `json:"seconds"`
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
