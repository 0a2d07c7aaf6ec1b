package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"

	"ambassador/cmd/ambassador/internal/config"
)

// AskHTTP sends the request of health.http, without following redirects.
func AskHTTP(ctx context.Context, h config.HTTPSection, host netip.Addr) error {
	to := netip.AddrPortFrom(host, uint16(h.Port)).String()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to+h.Path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "ambassador-health")
	var dialer net.Dialer
	dialer.SetMultipathTCP(false)
	client := http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if u := (*url.Error)(nil); errors.As(err, &u) {
		u.URL = config.HideQuery(u.URL)
	}
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != h.Status {
		return fmt.Errorf("health.http: %s answers %s, and %d is wanted", config.HideQuery(req.URL.String()), resp.Status, h.Status)
	}
	return nil
}
