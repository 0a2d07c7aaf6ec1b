package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/lookup"
)

// told has what a discovery has said, one text each: addresses, or why there are none.
type told struct {
	t    *testing.T
	said chan string
}

// discover follows default/db:5432 at the server until the test ends.
func discover(t *testing.T, f *fakeAPI, env ...string) *told {
	t.Helper()
	d := &told{t, make(chan string, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.client(env...).Discover(Service{"default", "db", "5432"}).Follow(ctx, func(all []lookup.Discovered, none error) {
			text := ""
			for _, a := range all {
				text += a.Addr.String() + " "
			}
			if none != nil {
				text = "none: " + none.Error()
			}
			d.said <- strings.TrimSpace(text)
		}, func(err error) { d.said <- "failed: " + err.Error() })
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(within):
			t.Error("Follow did not end with its context")
		}
	})
	return d
}

// await waits until text is said, and fails if it is not. It returns all that was said.
func (d *told) await(text string) string {
	d.t.Helper()
	end, before := time.After(within), []string{}
	for {
		select {
		case said := <-d.said:
			if strings.HasPrefix(said, text) {
				return said
			}
			before = append(before, said)
		case <-end:
			d.t.Fatalf("%q was not said within %v; before: %q", text, within, before)
		}
	}
}

func TestDiscoveryFollows(t *testing.T) {
	f := newFakeAPI(t)
	d := discover(t, f)
	d.await("none: service default/db does not exist")
	f.set("default/services/db", theService)
	d.await("none: service default/db has no EndpointSlice")
	f.set("default/endpointslices/db-1", slice("10.0.0.1"))
	d.await("10.0.0.1:6432")
	f.set("default/endpointslices/db-2", slice("10.0.0.2", "10.0.0.3"))
	d.await("10.0.0.1:6432 10.0.0.2:6432 10.0.0.3:6432")
	f.remove("default/endpointslices/db-2")
	d.await("10.0.0.1:6432")
	f.remove("default/services/db")
	d.await("none: service default/db does not exist")
}

// TestDiscoveryGoesOn asserts that a watch that is cut goes on from the last bookmark,
// without another list.
func TestDiscoveryGoesOn(t *testing.T) {
	f := newFakeAPI(t)
	f.set("default/services/db", theService)
	f.set("default/endpointslices/db-1", slice("10.0.0.1"))
	d := discover(t, f)
	d.await("10.0.0.1:6432")
	f.send("default/endpointslices", `{"type":"BOOKMARK","object":{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":"VERSION"},"endpoints":null,"ports":null}}`)
	f.mu.Lock()
	bookmark := f.version
	f.mu.Unlock()
	f.set("default/endpointslices/db-1", slice("10.0.0.2"))
	d.await("10.0.0.2:6432") // the bookmark was read before
	f.cut()
	f.set("default/endpointslices/db-1", slice("10.0.0.4"))
	d.await("10.0.0.4:6432")
	lists := 0
	for _, r := range f.asked() {
		if !strings.HasSuffix(r.URL.Path, "/endpointslices") {
			continue
		}
		if r.URL.Query().Get("watch") == "" {
			lists++
		} else if r.URL.Query().Get("allowWatchBookmarks") != "true" || r.URL.Query().Get("timeoutSeconds") == "" {
			t.Errorf("watch without bookmarks or without an end: %s", r.URL)
		}
	}
	if lists != 1 {
		t.Errorf("%d lists, want one: the position of the watch (a bookmark at %d) is kept", lists, bookmark)
	}
}

// TestBookmarkMovesThePosition asserts that a position which the server would have
// forgotten without a bookmark is not lost.
func TestBookmarkMovesThePosition(t *testing.T) {
	all := map[string]*endpointSlice{}
	version, err := apply(all, event{"BOOKMARK", []byte(`{"metadata":{"resourceVersion":"77"}}`)})
	if version != "77" || err != nil || len(all) != 0 {
		t.Errorf("%q, %v, %d objects", version, err, len(all))
	}
}

// TestDiscoveryListsAgain asserts that a forgotten position leads to another list, which
// has what was missed.
func TestDiscoveryListsAgain(t *testing.T) {
	f := newFakeAPI(t)
	f.set("default/services/db", theService)
	f.set("default/endpointslices/db-1", slice("10.0.0.1"))
	d := discover(t, f)
	d.await("10.0.0.1:6432")
	f.answers(func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(503); return true })
	f.cut()
	d.await("failed: the API server answers 503")
	f.mu.Lock()
	f.history = nil // the change is in no watch
	f.mu.Unlock()
	f.set("default/endpointslices/db-1", slice("10.0.0.9"))
	f.mu.Lock()
	f.history = nil
	f.mu.Unlock()
	f.forget()
	f.answers(nil)
	d.await("10.0.0.9:6432")
}

// TestDiscoveryRecoversOnce asserts that the recovery of two feeds is one: the log has one
// line for it.
func TestDiscoveryRecoversOnce(t *testing.T) {
	var said []string
	d := &discovery{ref: Service{"default", "db", "5432"}, failed: func(err error) { said = append(said, "failed "+err.Error()) },
		found: func(all []lookup.Discovered, none error) { said = append(said, fmt.Sprint("found ", len(all))) }}
	service := func() { d.update(ofService, func() { d.service = decoded[service](t, theService) }) }
	slices := func(addrs ...string) {
		d.update(ofSlices, func() { d.slices = map[string]*endpointSlice{"a": decoded[endpointSlice](t, slice(addrs...))} })
	}
	service()
	slices("10.0.0.1")
	d.fail(ofService, errors.New("x"))
	d.fail(ofSlices, errors.New("y"))
	slices("10.0.0.1")
	service()
	d.fail(ofSlices, errors.New("z"))
	service()
	slices("10.0.0.1", "10.0.0.2")
	if got, want := strings.Join(said, ", "), "found 1, failed x, failed x, found 1, failed z, found 2"; got != want {
		t.Errorf("said %s\nwant %s", got, want)
	}
}

// TestDiscoveryGathers asserts that changes in quick succession are passed on together, and
// none after the end.
func TestDiscoveryGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		d := &discovery{ref: Service{"default", "db", "5432"}, gather: gatherFor, guard: (&Client{}).guard,
			found: func(all []lookup.Discovered, none error) { said = append(said, all[0].Addr.String()) }}
		change := func(n int) {
			for i := range n {
				d.update(ofSlices, func() {
					d.slices = map[string]*endpointSlice{"a": decoded[endpointSlice](t, slice(fmt.Sprintf("10.0.0.%d", i+1)))}
				})
			}
		}
		d.update(ofService, func() { d.service = decoded[service](t, theService) })
		change(100)
		time.Sleep(gatherFor)
		synctest.Wait()
		change(50)
		d.end()
		time.Sleep(2 * gatherFor)
		synctest.Wait()
		if got, want := strings.Join(said, ", "), "10.0.0.1:6432, 10.0.0.100:6432"; got != want {
			t.Errorf("found %s, want %s", got, want)
		}
	})
}

// TestAWatchIsBounded asserts that neither unwanted objects nor large ones fill the memory.
func TestAWatchIsBounded(t *testing.T) {
	object := func(name string, size int) event {
		return event{"ADDED", []byte(`{"metadata":{"name":"` + name + `","resourceVersion":"7"}` + strings.Repeat(" ", size) + `}`)}
	}
	f := &feed[*service]{only: "db", all: map[string]*service{}, changed: func(map[string]*service) {}}
	for _, name := range []string{"a", "db", "c"} {
		if err := f.take(object(name, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.all) != 1 || f.all["db"] == nil {
		t.Errorf("kept %v, want db alone", f.all)
	}
	all, large := map[string]*endpointSlice{}, maxHeld/4
	for i := range 6 { // one object that is replaced
		if _, err := apply(all, object("a", large)); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
	}
	var err error
	for _, name := range []string{"b", "c", "d"} {
		_, err = apply(all, object(name, large))
	}
	if !errors.Is(err, errGarbage) {
		t.Errorf("%d bytes are held: %v", sizeOf(all), err)
	}
}

func TestDiscoveryAfter410(t *testing.T) {
	f := newFakeAPI(t)
	f.set("default/services/db", theService)
	f.set("default/endpointslices/db-1", slice("10.0.0.1"))
	d := discover(t, f)
	d.await("10.0.0.1:6432")
	f.mu.Lock()
	f.objects["default/endpointslices"] = nil // without an event
	f.version++
	f.oldest = f.version
	close(f.more)
	f.more = make(chan struct{})
	f.mu.Unlock()
	if said := d.await(""); !strings.HasPrefix(said, "none: service default/db has no EndpointSlice") {
		t.Errorf("after 410: %q, want what another list has, and no failure", said)
	}
}

func TestDiscoveryForbidden(t *testing.T) {
	f := newFakeAPI(t)
	f.answers(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, forbidden)
		return true
	})
	said := discover(t, f).await("failed: ")
	for _, part := range []string{"does not allow system:serviceaccount:default:amb to list,watch endpointslices.discovery.k8s.io,services in namespace default",
		"kubectl create role ambassador-discovery --namespace=default --verb=list,watch --resource=endpointslices.discovery.k8s.io,services &&",
		"kubectl create rolebinding ambassador-discovery --namespace=default --role=ambassador-discovery --serviceaccount=default:amb"} {
		if !strings.Contains(said, part) {
			t.Errorf("%s\ndoes not say: %s", said, part)
		}
	}
}

// TestUserInCommand asserts that no name of a user becomes shell text.
func TestUserInCommand(t *testing.T) {
	for user, want := range map[string]string{
		"system:serviceaccount:default:amb": " --serviceaccount=default:amb ",
		"CN=x":                              " --serviceaccount=NAMESPACE:NAME ",
		"https://idp.example#ann@b.c":       " --user=https://idp.example#ann@b.c ",
		"a;reboot":                          " --serviceaccount=NAMESPACE:NAME ",
		"$(reboot)":                         " --serviceaccount=NAMESPACE:NAME ",
		"system:serviceaccount:a|b":         " --serviceaccount=NAMESPACE:NAME ",
	} {
		said := needs{namespace: "n", what: "x", role: "r"}.forbidden(`forbidden: User "` + user + `" cannot list`)
		if !strings.Contains(said, want) {
			t.Errorf("%s: %s", user, said)
		}
	}
}

// TestDiscoveryKeepsTheLastAnswer asserts that no answer, and no answer that cannot be
// read, takes addresses away.
func TestDiscoveryKeepsTheLastAnswer(t *testing.T) {
	f := newFakeAPI(t)
	f.set("default/services/db", theService)
	f.set("default/endpointslices/db-1", slice("10.0.0.1"))
	d := discover(t, f)
	d.await("10.0.0.1:6432")
	for _, garbage := range []string{`no JSON`, `{"type":"MODIFIED","object":{"metadata":{}}}`, `{"type":"SPLIT","object":{}}`, `{"type":"MODIFIED","object":null}`,
		`{"type":"MODIFIED","object":{"metadata":{"name":"db-1"},"ports":[{"port":70000}]}}`} {
		f.send("default/endpointslices", garbage)
		d.await("failed: the API server's answer cannot be read")
		d.await("10.0.0.1:6432") // listed again
	}
	f.answers(func(w http.ResponseWriter, r *http.Request) bool {
		io.WriteString(w, `{"metadata":{"resourceVersion":"1"},"items":[{`+strings.Repeat(" ", maxList)+`}]}`)
		return true
	})
	f.cut()
	d.await("failed: the API server's answer cannot be read: an answer of the API server is larger")
	f.answers(nil)
	d.await("10.0.0.1:6432")
}

// TestDiscoveryWithoutServer asserts that each thing that is missing is named.
func TestDiscoveryWithoutServer(t *testing.T) {
	f := newFakeAPI(t)
	discover(t, f, envHost+"=").await("failed: KUBERNETES_SERVICE_HOST is not set")
	discover(t, f, envCredentials+"="+t.TempDir()).await("failed: open ")
	f.server.Close()
	discover(t, f).await("failed: the API server at 127.0.0.1:")
}

// TestTokenAndRootsAreReadAnew asserts that files which the kubelet replaces are used.
func TestTokenAndRootsAreReadAnew(t *testing.T) {
	f := newFakeAPI(t)
	f.answers(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer second" {
			return false
		}
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	roots, err := readAll(f.folder + "/ca.crt")
	if err != nil {
		t.Fatal(err)
	}
	f.write("ca.crt", "nothing")
	d := discover(t, f)
	d.await("failed: " + f.folder + "/ca.crt: there is no certificate in it")
	f.write("ca.crt", roots)
	d.await("failed: the API server answers 401 Unauthorized; it does not accept our token")
	f.write("token", "second\n")
	d.await("none: service default/db does not exist")
}

// TestRedirectsAreNotFollowed asserts that no other host gets the token.
func TestRedirectsAreNotFollowed(t *testing.T) {
	f := newFakeAPI(t)
	f.answers(func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, f.server.URL+"/elsewhere", http.StatusTemporaryRedirect)
		return true
	})
	discover(t, f).await("failed: the API server answers 307 Temporary Redirect")
	for _, r := range f.asked() {
		if r.URL.Path == "/elsewhere" {
			t.Error("the redirect was followed, with the token")
		}
	}
}

// TestRetryAfter asserts that a pause which the server asks for is kept, and is bounded.
func TestRetryAfter(t *testing.T) {
	for header, want := range map[string]time.Duration{"": 0, "3": 3 * time.Second, "999999": time.Minute, "-1": 0, "Wed, 21 Oct 2015 07:28:00 GMT": 0} {
		r := &http.Response{StatusCode: 429, Header: http.Header{"Retry-After": {header}}, Body: io.NopCloser(strings.NewReader("busy"))}
		if got := newStatusError(r); got.wait != want || got.Error() != "the API server answers 429 Too Many Requests" {
			t.Errorf("Retry-After %q: %v, %v, want %v", header, got, got.wait, want)
		}
	}
}

// slowBody is an answer whose end never comes: Read ends when it is closed.
type slowBody struct{ closed chan struct{} }

func (b *slowBody) Read([]byte) (int, error) { <-b.closed; return 0, io.ErrClosedPipe }
func (b *slowBody) Close() error             { close(b.closed); return nil }

// TestTheMessageOfAnErrorIsNotAwaited asserts that a server that never ends an answer
// holds nobody up.
func TestTheMessageOfAnErrorIsNotAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		err := newStatusError(&http.Response{StatusCode: 503, Body: &slowBody{make(chan struct{})}})
		if took := time.Since(began); took != statusTimeout || err.code != 503 {
			t.Errorf("%v after %v, want it after %v", err, took, statusTimeout)
		}
	})
}

// TestPauseAfterATurn asserts that a server which ends each watch soon is asked ever more
// seldom, and one that ends them as agreed at once.
func TestPauseAfterATurn(t *testing.T) {
	c := New(func(string) (string, bool) { return "", false }, slog.New(slog.DiscardHandler), nil)
	for _, row := range []struct {
		name           string
		err            error
		lasted         time.Duration
		failures, then int
		least, most    time.Duration
	}{
		{"as agreed", nil, watchTime, 3, 0, 0, 0},
		{"the position is gone at last", &statusError{code: 410}, watchTime, 3, 0, 0, 0},
		{"ended after two seconds", nil, 2 * time.Second, 9, 10, longestPause / 2, longestPause},
		{"the position is gone at once", &statusError{code: 410}, 0, 9, 10, longestPause / 2, longestPause},
		{"refused", &statusError{code: 403}, 0, 9, 10, longestPause / 2, longestPause},
		{"refused, after it was long well", &statusError{code: 403}, watchTime, 9, 1, 1, firstPause},
		{"busy", &statusError{code: 429, wait: 40 * time.Second}, 0, 0, 1, 40 * time.Second, 40 * time.Second},
	} {
		if pause, then := c.pauseAfter(row.err, row.lasted, row.failures); then != row.then || pause < row.least || pause > row.most {
			t.Errorf("%s: %v and %d failures, want %v to %v and %d", row.name, pause, then, row.least, row.most, row.then)
		}
	}
}
