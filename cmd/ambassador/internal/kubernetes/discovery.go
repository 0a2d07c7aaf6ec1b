package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"sync"
	"time"

	"ambassador/l4/lookup"
	"ambassador/l4/task"
	"ambassador/l4/upstream"
)

// Discover makes the source of the addresses of a Service's port.
func (c *Client) Discover(ref Service) *lookup.Discovery {
	return &lookup.Discovery{Host: ref.Host(), Follow: func(ctx context.Context, found func([]lookup.Discovered, error), failed func(error)) {
		d := &discovery{ref: ref, found: found, failed: failed, gather: gatherFor, guard: c.guard}
		d.here.zone, _ = c.env(envZone)
		d.here.node, _ = c.env(envNode)
		d.follow(ctx, c)
		d.end()
	}}
}

// gatherFor is how long changes are gathered: a rollout of a large Service is many of them,
// and each has all addresses.
const gatherFor = 150 * time.Millisecond

// discovery follows a Service and its EndpointSlices.
type discovery struct {
	// Static after construction.
	ref    Service
	here   here
	found  func([]lookup.Discovered, error)
	failed func(error)
	gather time.Duration // how long changes after the first answer are gathered; 0: not at all
	guard  func(try func() error) error

	mu      sync.Mutex                // held while found and failed are called
	service *service                  // guarded by mu; nil: it does not exist
	slices  map[string]*endpointSlice // guarded by mu
	known   [2]bool                   // guarded by mu; service and slices were listed
	errs    [2]error                  // guarded by mu; why they cannot be followed now
	last    *answer                   // guarded by mu; nil before the first
	away    bool                      // guarded by mu; failed was called after found
	later   *time.Timer               // guarded by mu; runs pass; nil: nothing is to be passed on
	ended   bool                      // guarded by mu; found and failed are not called any more
}

// answer is what was found.
type answer struct {
	all  []lookup.Discovered
	none string
}

// The feeds of a discovery.
const (
	ofService = iota
	ofSlices
)

// follow runs both feeds until ctx ends.
func (d *discovery) follow(ctx context.Context, c *Client) {
	n := needs{namespace: d.ref.Namespace, what: fmt.Sprintf("service %s/%s", d.ref.Namespace, d.ref.Name),
		resources: []string{"endpointslices.discovery.k8s.io", "services"}, role: "ambassador-discovery"}
	services := &feed[*service]{client: c, needs: n, only: d.ref.Name, guard: c.guard,
		path:  "/api/v1/namespaces/" + d.ref.Namespace + "/services",
		query: url.Values{"fieldSelector": {"metadata.name=" + d.ref.Name}},
		changed: func(all map[string]*service) {
			d.update(ofService, func() { d.service = all[d.ref.Name] })
		},
		failed: func(err error) { d.fail(ofService, err) }}
	endpointSlices := &feed[*endpointSlice]{client: c, needs: n, guard: c.guard,
		path:  "/apis/discovery.k8s.io/v1/namespaces/" + d.ref.Namespace + "/endpointslices",
		query: url.Values{"labelSelector": {"kubernetes.io/service-name=" + d.ref.Name}},
		changed: func(all map[string]*endpointSlice) {
			d.update(ofSlices, func() { d.slices = maps.Clone(all) })
		},
		failed: func(err error) { d.fail(ofSlices, err) }}
	var work sync.WaitGroup
	work.Go(func() { services.run(ctx) }) // both end with ctx
	endpointSlices.run(ctx)
	work.Wait()
}

// update takes what a feed has, and passes on what follows from it: the first answer at
// once, changes together with those that come soon after.
func (d *discovery) update(feed int, take func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	take()
	d.known[feed], d.errs[feed] = true, nil
	switch {
	case !d.known[ofService] || !d.known[ofSlices]:
	case d.last == nil, d.gather == 0:
		d.pass()
	case d.later == nil:
		d.later = time.AfterFunc(d.gather, func() {
			d.guard(func() error { // it logs and counts a panic
				d.mu.Lock()
				defer d.mu.Unlock()
				d.pass()
				return nil
			})
		})
	}
}

// end stops what is to be passed on, and waits for what is passed on now.
func (d *discovery) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended = true; d.later != nil {
		d.later.Stop()
	}
}

// pass passes on what follows from both feeds, with mu held.
func (d *discovery) pass() {
	if d.later = nil; d.ended {
		return
	}
	all, err := addresses(d.ref, d.service, d.slices, d.here)
	now := &answer{all: all}
	if err != nil {
		now.none = err.Error()
	}
	failure := cmp.Or(d.errs[ofService], d.errs[ofSlices])
	if d.last == nil || now.none != d.last.none || !slices.Equal(now.all, d.last.all) || d.away && failure == nil {
		d.found(all, err)
		d.last, d.away = now, false
		if failure != nil {
			d.tell(failure)
		}
	}
}

// fail takes the failure of a feed.
func (d *discovery) fail(feed int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.errs[feed] = err
	d.tell(cmp.Or(d.errs[ofService], d.errs[ofSlices]))
}

// tell passes on a failure, with mu held.
func (d *discovery) tell(err error) {
	d.away = true
	d.failed(err)
}

// guard recovers from a panic of try, which logs and counts as one of the resolver.
func (c *Client) guard(try func() error) (err error) {
	guard := task.Guard{Log: c.log, Count: c.panicked}
	if panicked := guard.Catch(upstream.PartResolver, func() { err = try() }); panicked != nil {
		return panicked
	}
	return err
}
