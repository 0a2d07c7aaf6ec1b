package admin

import (
	"net/http"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/page"
)

// exactly ends a pattern of net/http that matches its path alone.
const exactly = "{$}"

// pages are the routes of the live page.
func (a *admin) pages() []route {
	if a.Page == nil {
		return nil
	}
	return []route{
		{"GET", api.PathPage + exactly, []string{"q"}, func(w http.ResponseWriter, r *http.Request) error { return a.Page.Document(w, r, a.guard.access(r)) }},
		{"GET", api.PathPageEvents, []string{"q"}, func(w http.ResponseWriter, r *http.Request) error {
			return a.Page.Events(w, r, a.guard.access(r), a.turns.take)
		}},
		{"GET", api.PathPageAsset, nil, func(w http.ResponseWriter, r *http.Request) error { return a.Page.Asset(w, r, r.PathValue("file")) }},
	}
}

// access is what the viewer of a page may do. `ambassador page` sends the token with
// every request.
func (o Guard) access(r *http.Request) page.Access {
	switch {
	case !o.TCP || o.checkToken(r.Header.Get("Authorization")) == nil:
		return page.Open
	case o.Token != "":
		return page.Token
	}
	return page.Read
}
