package kubernetes

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"ambassador/certs"
)

// FuzzEvents gives a feed any watch. It must end, and hold no more than its bound.
func FuzzEvents(f *testing.F) {
	f.Add([]byte(`{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"1"},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":true},"hints":{"forZones":[{"name":"a"}]}}],"ports":[{"name":"pg","port":1}]}}
{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"2"}}}
{"type":"DELETED","object":{"metadata":{"name":"a","resourceVersion":"3"}}}`))
	f.Add([]byte(`{"type":"ERROR","object":{"kind":"Status","message":"too old","code":410}}`))
	f.Add([]byte(`{"type":"MODIFIED","object":null}`))
	f.Add([]byte(`{"type":"ADDED"`))
	f.Fuzz(func(t *testing.T, stream []byte) {
		all := map[string]*endpointSlice{}
		err := readEvents(bytes.NewReader(stream), func(e event) error {
			_, err := apply(all, e)
			return err
		})
		if err == nil {
			t.Error("the end of the stream is not an error")
		}
		if len(all) > maxObjects+1 {
			t.Errorf("%d objects", len(all))
		}
		judge(t, decoded[service](t, theService), all)
	})
}

// judge asserts what holds for every answer of addresses.
func judge(t *testing.T, svc *service, all map[string]*endpointSlice) {
	for _, port := range []string{"5432", "pg"} {
		found, err := addresses(Service{"default", "db", port}, svc, all, here{"a", "n"})
		if (len(found) == 0) != (err != nil) {
			t.Errorf("%v beside %v", found, err)
		}
		for _, a := range found {
			if !a.Addr.IsValid() || a.Addr.Port() == 0 {
				t.Errorf("address %s", a.Addr)
			}
		}
	}
}

func FuzzList(f *testing.F) {
	f.Add([]byte(`{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"db"},"spec":{"ipFamilies":["IPv6"],"ports":[{"name":"pg","port":5432}]}}]}`))
	f.Add([]byte(`{"metadata":{"resourceVersion":"7"},"items":[null]}`))
	f.Add([]byte(`{"items":{}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, version, err := readList[*service](bytes.NewReader(text))
		if err == nil && version == "" {
			t.Error("a list without a position")
		}
		for _, svc := range all {
			judge(t, svc, map[string]*endpointSlice{"a": decoded[endpointSlice](t, slice("10.0.0.1"))})
		}
	})
}

// FuzzStatus asserts that no message of the server reaches a terminal as it is.
func FuzzStatus(f *testing.F) {
	f.Add([]byte(forbidden))
	f.Add([]byte(`{"message":"\u001b[2J` + strings.Repeat("x", 1000) + `"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, code := range []int{401, 403, 404, 410, 500} {
			e := newStatusError(&http.Response{StatusCode: code, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body))})
			n := needs{namespace: "default", what: "service default/db", resources: []string{"services"}, role: "r"}
			text := n.explain(e).Error()
			if len(text) > 4*maxMessage+600 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("%q", text)
			}
		}
	})
}

// FuzzSecret gives an identity any Secret. Nothing but a usable pair is published.
func FuzzSecret(f *testing.F) {
	f.Add([]byte(`{"metadata":{"name":"a"},"data":{"tls.crt":"eA==","tls.key":"eA==","ca.crt":"eA=="}}`))
	f.Add([]byte(`{"metadata":{"name":"a"},"data":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := readObject[*secret](text)
		if err != nil {
			return
		}
		source := certs.NewSource("x")
		s := (&Client{}).Identity(Secret{"default", "a"}, source, slog.New(slog.DiscardHandler))
		s.take(o)
		if st := source.Status(); st.Ready == (st.LastError != "") {
			t.Errorf("%+v", st)
		}
	})
}
