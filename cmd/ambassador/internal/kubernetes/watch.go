package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net/url"
	"strconv"
	"time"

	"ambassador/certs"
)

// The pause after a failure, which grows. A watch that ends before longestPause counts as
// one: a server that ends each after a second must not be asked each second by all.
const (
	firstPause   = 500 * time.Millisecond
	longestPause = 15 * time.Second
)

const (
	// watchTime is how long the server keeps a watch at least; it ends up to a quarter
	// later, so that the watches of many processes do not end together.
	watchTime = 4 * time.Minute
	// overdue is how much longer the end of a watch is awaited.
	overdue = 15 * time.Second
)

// feed keeps a list of objects current.
type feed[T object] struct {
	// Static after construction.
	client *Client
	path   string
	query  url.Values // selects the objects
	only   string     // the name of the only object that is kept; empty: all are
	needs  needs
	guard  func(try func() error) error // recovers from panics
	// changed is called with all objects after the list, after each change, and when
	// the server can be asked again. It does not keep the map. failed is called when it
	// cannot.
	changed func(all map[string]T)
	failed  func(error)

	// Owned by run.
	all     map[string]T
	version string // the position to watch from; empty: list first
}

// run follows the objects until ctx ends.
func (f *feed[T]) run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		began := time.Now()
		err := f.guard(func() error { return f.turn(ctx) })
		if ctx.Err() != nil {
			return
		}
		if _, unasked := errors.AsType[*unaskedError](err); err != nil && !unasked {
			f.version = "" // the position may be the cause
		}
		if err != nil && !isGone(err) {
			f.failed(f.needs.explain(err))
		}
		var pause time.Duration
		if pause, failures = f.client.pauseAfter(err, time.Since(began), failures); pause > 0 {
			certs.Pause(ctx, pause)
		}
	}
}

// pauseAfter is the pause after a turn that lasted some time, and the count of failures
// with it. A watch that ends as agreed has none.
func (c *Client) pauseAfter(err error, lasted time.Duration, failures int) (time.Duration, int) {
	if lasted >= longestPause {
		if err == nil || isGone(err) {
			return 0, 0
		}
		failures = 0
	}
	pause := c.backoff.Pause(failures, rand.Float64())
	if status, ok := errors.AsType[*statusError](err); ok {
		pause = max(pause, status.wait)
	}
	return pause, failures + 1
}

// turn lists the objects if it must, and watches them. Nil: the watch has ended, and goes
// on from its position.
func (f *feed[T]) turn(ctx context.Context) error {
	if f.version == "" {
		if err := f.list(ctx); err != nil {
			return err
		}
	}
	return f.watch(ctx)
}

// list reads all objects.
func (f *feed[T]) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	response, err := f.client.get(ctx, f.path, f.query)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	all, version, err := readList[T](response.Body)
	if err != nil {
		return err
	}
	f.all, f.version = all, version
	f.drop()
	f.changed(f.all)
	return nil
}

// watch applies events until the stream ends.
func (f *feed[T]) watch(ctx context.Context) error {
	long := watchTime + rand.N(watchTime/4)
	ctx, cancel := context.WithTimeout(ctx, long+overdue)
	defer cancel()
	query := maps.Clone(f.query)
	maps.Copy(query, url.Values{"watch": {"1"}, "allowWatchBookmarks": {"true"}, "resourceVersion": {f.version},
		"timeoutSeconds": {strconv.Itoa(int(long / time.Second))}})
	response, err := f.client.get(ctx, f.path, query)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	f.changed(f.all)
	err = readEvents(response.Body, f.take)
	var status *statusError
	if errors.As(err, &status) || errors.Is(err, errGarbage) {
		return err
	}
	return nil // the server has ended it, or the connection broke
}

// take applies one event.
func (f *feed[T]) take(e event) error {
	version, err := apply(f.all, e)
	if err != nil {
		return err
	}
	f.drop()
	f.version = cmp.Or(version, f.version)
	if e.Type != "BOOKMARK" {
		f.changed(f.all)
	}
	return nil
}

// drop removes objects that were not asked for.
func (f *feed[T]) drop() {
	if f.only != "" {
		maps.DeleteFunc(f.all, func(name string, _ T) bool { return name != f.only })
	}
}
