package certs

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestSourceSaysWhyItIsNotReady(t *testing.T) {
	ca := newAuthority(t)
	s := NewSource("orders")
	refused := func(want ...string) {
		t.Helper()
		_, current := s.Current()
		_, config := NewOriginator(ClientPolicy{Source: s}).Config("h", "a")
		for _, err := range []error{current, config, s.Ready()} {
			if !errors.Is(err, ErrNotReady) {
				t.Fatalf("error %v; want ErrNotReady", err)
			}
			for _, text := range append(want, "identity orders not ready") {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("error %q; want one with %q", err, text)
				}
			}
		}
		if st := s.Status(); st.Ready || st.Reason != current.Error() {
			t.Errorf("status %+v; want the reason %q", st, current)
		}
	}
	refused("no certificate yet")
	s.Fail(errors.New("client.crt: no such file"))
	refused("no certificate yet", "client.crt: no such file")
	s.Publish(ca.pair(t, "dns:me", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), nil)
	refused("expired at", " ago")
	s.Fail(errors.New("client.key: permission denied"))
	refused("expired at", "permission denied")
	s.Publish(ca.pair(t, "dns:me", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), nil)
	refused("not valid before")
	s.Publish(ca.pair(t, "dns:me"), nil)
	if err := s.Ready(); err != nil {
		t.Error(err)
	}
}

func TestSourceStatus(t *testing.T) {
	ca := newAuthority(t)
	s := NewSource("orders")
	me := ca.pair(t, "dns:orders.svc spiffe://corp/orders ip:10.0.0.7")
	if !s.Publish(me, NewRoots(ca.pool())) {
		t.Error("the first generation is not new")
	}
	s.Fail(errors.New("bad pair"))
	st := s.Status()
	if !st.Ready || st.Reason != "" || st.Name != "orders" || strings.Join(st.Names, " ") != "spiffe://corp/orders dns:orders.svc ip:10.0.0.7" ||
		st.Issuer != "CN=test CA" || st.Serial != me.Leaf.SerialNumber.Text(16) || !st.NotAfter.Equal(me.Leaf.NotAfter) || !st.NotBefore.Equal(me.Leaf.NotBefore) ||
		st.Generation != 1 || st.Loads != 1 || st.Failures != 1 || st.LastError != "bad pair" || st.LastErrorAt.IsZero() || st.LoadedAt.IsZero() {
		t.Errorf("status %+v", st)
	}
	st.Names[0] = "spoilt"
	if s.Status().Names[0] == "spoilt" {
		t.Error("Status gives its own slice away")
	}
	if snap, err := s.Current(); err != nil || snap.Certificate != me {
		t.Errorf("after a failure: %+v, %v; want the generation before", snap, err)
	}
	s.Publish(nil, NewRoots(ca.pool())) // roots only
	if st := s.Status(); !st.Ready || st.Serial != "" || !st.NotAfter.IsZero() || st.Generation != 2 || st.Failures != 1 || st.LastError != "" {
		t.Errorf("status with roots only %+v", st)
	}
}

// The same content makes no new generation, so that sessions can be resumed.
func TestSameContentMakesNoGeneration(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	me, you := ca.pair(t, "dns:me"), ca.pair(t, "dns:you")
	again := *me // another value of the same certificate
	s := NewSource("orders")
	for i, tt := range []struct {
		publish func() bool
		isNew   bool
	}{
		{func() bool { return s.Publish(me, nil) }, true},
		{func() bool { return s.Publish(&again, nil) }, false},
		{func() bool { return s.Publish(me, NewRoots(ca.pool())) }, true},
		{func() bool { return s.Publish(me, NewRoots(ca.pool())) }, false},
		{func() bool { return s.Publish(me, NewRoots(other.pool())) }, true},
		{func() bool { return s.Publish(you, NewRoots(other.pool())) }, true},
		{func() bool { return s.Publish(nil, NewRoots(other.pool())) }, true},
		{func() bool { return s.Publish(nil, nil) }, true},
		{func() bool { return s.Publish(nil, nil) }, false},
	} {
		before := s.Status()
		if got := tt.publish(); got != tt.isNew || (s.Status().Generation != before.Generation) != tt.isNew || (s.Status().Loads != before.Loads) != tt.isNew {
			t.Errorf("step %d: new %v, status %+v", i, got, s.Status())
		}
	}
	s.Fail(errors.New("bad pair"))
	changed := s.Changed()
	if s.Publish(nil, nil) || s.Status().LastError != "" {
		t.Error("the good content again does not clear the error")
	}
	wantClosed(t, changed)
}

func TestSourceAnnouncesChanges(t *testing.T) {
	ca := newAuthority(t)
	s := NewSource("orders")
	changed := s.Changed()
	s.Fail(errors.New("bad pair"))
	wantClosed(t, changed)
	changed = s.Changed()
	s.Publish(ca.pair(t, "dns:me"), nil)
	wantClosed(t, changed)
	select {
	case <-s.Changed():
		t.Error("a change is told twice")
	default:
	}
}

func wantClosed(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	default:
		t.Error("the change is not told")
	}
}

func TestValidity(t *testing.T) {
	from := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	c := &x509.Certificate{NotBefore: from, NotAfter: from.Add(time.Hour)}
	for _, tt := range []struct {
		after time.Duration
		want  string
	}{
		{0, ""}, {time.Hour, ""},
		{time.Hour + 90*time.Second, "the certificate expired at 2026-11-23T10:00:00Z, 1m30s ago"},
		{-time.Minute, "the certificate is not valid before 2026-11-23T09:00:00Z, in 1m0s; is the clock right?"},
	} {
		err := Validity(c, from.Add(tt.after))
		var validity *ValidityError
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("after %v: %v", tt.after, err)
		case tt.want != "" && (!errors.As(err, &validity) || err.Error() != tt.want):
			t.Errorf("after %v: %v; want %s", tt.after, err, tt.want)
		}
	}
	if err := usable(nil, from); err == nil {
		t.Error("nothing is usable")
	}
	if err := usable(&Snapshot{}, from); err != nil {
		t.Errorf("roots only: %v", err)
	}
}
