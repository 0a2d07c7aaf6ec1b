package admin

import (
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/l4/unixsocket"
)

// UpgradeRequest is what a client wants of an upgrade.
type UpgradeRequest struct {
	// Binary is the next program; empty: the file that this one was started from.
	Binary string
	// DryRun checks everything, and changes nothing.
	DryRun bool
	// Wait lets sessions end first that cannot be carried over.
	Wait bool
}

// doUpgrade answers before the upgrade begins: it ends this connection.
func (a *admin) doUpgrade(w http.ResponseWriter, r *http.Request) error {
	if a.Upgrade == nil {
		return &api.Error{Status: http.StatusNotImplemented, Text: "an upgrade in place is not available for this process", Hint: "restart it"}
	}
	q := r.URL.Query()
	req := UpgradeRequest{Binary: q.Get(api.UpgradeBinary)}
	for name, to := range map[string]*bool{api.UpgradeDryRun: &req.DryRun, api.UpgradeWait: &req.Wait} {
		var err error
		if text := q.Get(name); text != "" {
			if *to, err = strconv.ParseBool(text); err != nil {
				return &api.Error{Status: http.StatusBadRequest, Text: "query: " + name + ": " + text + " is neither true nor false", Hint: "use true or false"}
			}
		}
	}
	if err := mayChoose(r, req.Binary); err != nil {
		return err
	}
	plan, begin, err := a.Upgrade(r.Context(), req)
	if err != nil {
		return &api.Error{Status: http.StatusUnprocessableEntity, Text: err.Error(), Hint: "the running program goes on"}
	}
	if req.DryRun {
		replyJSON(w, http.StatusOK, plan)
		return nil
	}
	w.Header().Set("Connection", "close")
	replyJSON(w, http.StatusAccepted, plan)
	http.NewResponseController(w).Flush()
	begin()
	return nil
}

// mayChoose refuses a program that the client may not choose: it gets all rights of this
// process. The user of this process, and root, have them anyway.
func mayChoose(r *http.Request, binary string) error {
	if binary == "" {
		return nil
	}
	if !filepath.IsAbs(binary) {
		return &api.Error{Status: http.StatusBadRequest, Text: "binary: " + binary + " is no absolute path", Hint: "give the whole path"}
	}
	if uid, ok := userOf(r); !ok || uid != 0 && int(uid) != os.Geteuid() {
		return &api.Error{Status: http.StatusForbidden, Text: "binary: only the user of the process, or root, may choose the next program, and only over a unix socket", Hint: "install the new version in place of the running one, and leave --binary out"}
	}
	return nil
}

// CarriedSocket is an HTTP socket that another program of this process continues.
type CarriedSocket struct {
	Name string           `json:"name"`
	At   string           `json:"at"`   // as configured
	Addr string           `json:"addr"` // as printed
	FD   int              `json:"fd"`
	File *unixsocket.File `json:"file,omitempty"`
}
