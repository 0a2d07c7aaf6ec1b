package l4

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/l4/task"
	"ambassador/l4/upstream"
)

// A panic leaks neither a place nor a connection, and is logged with its stack.
func TestPanicOfASessionLeavesNothingBehind(t *testing.T) {
	plain := oneUpstream(l4test.Backend(t, l4test.Echo))
	mysql := starttlsUpstream(t, "mysql", func(cfg *tls.Config) string { return starttlsBackend(t, l4test.MySQLHello, 36, "", cfg, mysqlEcho) })
	for _, tt := range []struct {
		what string
		cfg  Config
		bad  func(f *fixture) // a session with the bug
		good func(f *fixture) // the next one
	}{
		{"while it connects", plain, func(f *fixture) { f.wantRefused() }, func(f *fixture) { ping(t, f.client(0)) }},
		{"in the dialogue", mysql, func(f *fixture) { io.Copy(io.Discard, mysqlClient(f)) }, func(f *fixture) { hear(t, mysqlClient(f), "\x07\x00\x00\x02") }},
	} {
		var log strings.Builder
		s, once, bug := &l4test.Survived{}, sync.Once{}, func() { panic("a bug") }
		up := &tt.cfg.Upstreams[0]
		up.MaxConnections = 1
		o := Options{Log: slog.New(slog.NewTextHandler(&log, nil)), Observer: Observer{Panicked: s.Count}}
		if config := up.TLS; config != nil {
			up.TLS = func(host, address string) (*tls.Config, error) { once.Do(bug); return config(host, address) }
		} else {
			o.Observer.Upstream.Phase = func(_, _ string, _ upstream.Phase, _ time.Duration) { once.Do(bug) }
		}
		f := serve(t, o, tt.cfg)
		tt.bad(f)
		if r := f.record(); r.Reason != outcome.Internal || !strings.Contains(r.Cause, "a bug") {
			t.Errorf("%s: record %+v", tt.what, r)
		}
		if !strings.Contains(log.String(), "TestPanicOfASession") {
			t.Errorf("%s: no stack in the log: %s", tt.what, log.String())
		}
		tt.good(f) // the only place is free
		s.Want(t, map[string]int{PartSession: 1})
	}
}

// What has got the record of a session keeps it as it was, whatever panics later.
func TestPanicAfterTheEndChangesNoRecord(t *testing.T) {
	f := serve(t, Options{}, oneUpstream(l4test.Backend(t, l4test.Echo)))
	given := make(chan outcome.Record, 2)
	f.opts.Observer.Ended = func(r *outcome.Record) {
		given <- *r
		f.records <- r
		panic("a bug")
	}
	var kept []*outcome.Record
	for range 2 { // the loop serves the second one after the panic of the first
		c := f.client(0)
		ping(t, c)
		c.Close()
		kept = append(kept, f.record())
	}
	if was := <-given; *kept[0] != was {
		t.Errorf("the record was %+v, and is %+v", was, *kept[0])
	}
}

// A panic within a handshake leaves no connection in the log of keys.
func TestPanicOfAHandshakeIsForgotten(t *testing.T) {
	bug := func(*tls.ClientHelloInfo) (Termination, error) { panic("a bug") }
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].TLS = &ServerTLS{Terminate: bug}
	f := serve(t, Options{}, cfg)
	tls.Client(f.client(0), &tls.Config{InsecureSkipVerify: true}).Handshake()
	if r := f.record(); r.Reason != outcome.Internal {
		t.Errorf("record %+v", r)
	}
	if n := reflect.ValueOf(&f.Server.inbound.secrets).Elem().FieldByName("shadows").Len(); n > 0 {
		t.Errorf("%d connections are kept", n)
	}
}

// mysqlClient is a client that has sent its response to the greeting.
func mysqlClient(f *fixture) net.Conn {
	c := f.client(0)
	hear(f.t, c, strings.Replace(l4test.MySQLHello, "\x00\x8a\x21", "\x00\x82\x21", 1))
	io.WriteString(c, l4test.MySQLReply)
	return c
}

// A panic of the relay and one that Catch has reported are each reported once.
func TestPanicsInErrorsAreToldOnce(t *testing.T) {
	s := &l4test.Survived{}
	g := task.Guard{Count: s.Count}
	reportRelayed(g, PartRelay, nil)
	reportRelayed(g, PartRelay, io.EOF)
	public := g.Catch(upstream.PartResolver, func() { panic("a bug") })
	reportRelayed(g, PartSession, &outcome.Error{Err: public})
	reportRelayed(g, PartRelay, &outcome.Error{Err: &relay.PanicError{Value: "a bug"}})
	s.Want(t, map[string]int{upstream.PartResolver: 1, PartRelay: 1})
	if !slices.Contains(Parts(), PartRelay) {
		t.Error("Parts does not list the relay")
	}
}
