package admin

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
)

// doTry makes a trial of the addresses of an upstream, or of one, one after the other.
func (a *admin) doTry(w http.ResponseWriter, r *http.Request) error {
	select {
	case a.trying <- struct{}{}:
		defer func() { <-a.trying }()
	default:
		return &api.Error{Status: http.StatusServiceUnavailable, Text: "another trial is running", Hint: "try again when it has ended"}
	}
	ctx, cancel := context.WithTimeout(r.Context(), api.TryTimeout)
	defer cancel()
	trials, err := a.trialsOf(ctx, r.PathValue("name"), r.URL.Query().Get("address"))
	if err != nil {
		return err
	}
	reply := api.Tried{Upstream: r.PathValue("name")}
	for _, t := range trials {
		one, began := api.Trial{Endpoint: t.Endpoint, Address: t.Address}, time.Now()
		if err := t.Now(ctx); err != nil {
			one.Error, _ = outcome.CauseAndFix(err)
		}
		one.OK, one.Seconds = one.Error == "", outcome.Seconds(time.Since(began))
		reply.Trials = append(reply.Trials, one)
	}
	replyJSON(w, http.StatusOK, reply)
	return nil
}

// trialsOf returns the trials of an upstream, or that of one of its addresses. The error
// is an *api.Error.
func (a *admin) trialsOf(ctx context.Context, name, address string) ([]upstream.Trial, error) {
	trials, ok := a.Trials(ctx, name)
	if !ok {
		return nil, &api.Error{Status: http.StatusNotFound, Text: fmt.Sprintf("upstream %q: there is none of that name", name), Hint: "see GET /v1/upstreams for their names"}
	}
	if len(trials) == 0 {
		return nil, &api.Error{Status: http.StatusConflict, Text: fmt.Sprintf("upstream %q has nothing to try: it is dynamic, and the breakers of all its destinations are closed", name), Hint: "try a destination with `ambassador test --dest HOST:PORT`"}
	}
	if address == "" {
		return trials, nil
	}
	trials = slices.DeleteFunc(trials, func(t upstream.Trial) bool { return t.Address != address })
	if len(trials) == 0 {
		return nil, &api.Error{Status: http.StatusNotFound, Text: fmt.Sprintf("upstream %q has no address %q", name, address), Hint: "see GET /v1/upstreams for its addresses"}
	}
	return trials, nil
}
