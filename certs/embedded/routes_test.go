package embedded

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/go-chi/chi/v5"
)

// The server has the routes that step-ca's clients need, and no others.
func TestRoutes(t *testing.T) {
	r := routes()
	for _, base := range []string{"", "/1.0"} {
		for path, method := range map[string]string{"/health": "GET", "/version": "GET", "/root/00ff": "GET", "/roots": "GET", "/roots.pem": "GET", "/federation": "GET",
			"/provisioners": "GET", "/provisioners/x/encrypted-key": "GET", "/sign": "POST", "/renew": "POST", "/rekey": "POST", "/revoke": "POST", "/crl": "GET"} {
			if !r.Match(chi.NewRouteContext(), method, base+path) {
				t.Errorf("%s %s is not there", method, base+path)
			}
		}
		for _, path := range []string{"/ssh/sign", "/ssh/renew", "/ssh/revoke", "/ssh/rekey", "/ssh/roots", "/ssh/federation", "/ssh/config", "/ssh/config/user",
			"/ssh/check-host", "/ssh/hosts", "/ssh/get-hosts", "/ssh/bastion", "/sign-ssh", "/re-sign", "/intermediates", "/intermediates.pem", "/admin/provisioners", "/acme/acme/directory", "/debug/pprof/"} {
			for _, method := range []string{"GET", "POST"} {
				w := httptest.NewRecorder()
				r.ServeHTTP(w, httptest.NewRequest(method, base+path, nil))
				if w.Code != http.StatusNotFound {
					t.Errorf("%s %s: %d, want 404", method, base+path, w.Code)
				}
			}
		}
	}
}
