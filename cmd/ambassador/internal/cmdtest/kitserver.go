package cmdtest

import (
	"sync/atomic"
	"time"

	"ambassador/certs"
	"ambassador/l4"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
)

// FakeServer is what the admin API of a test shows. Fields are set before use.
type FakeServer struct {
	Readiness  l4.Readiness
	Upstreams  []upstream.Status
	Live, Over []outcome.Record
	Identities []certs.Status
	ReloadErr  error

	Reloads, Drains, Quits atomic.Int32
	Killed                 atomic.Value // string
}

// Noon is when the records of the tests are told.
func Noon() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }

// BeforeNoon is a time so long before Noon.
func BeforeNoon(d time.Duration) *time.Time {
	t := Noon().Add(-d)
	return &t
}

// NewFakeServer has two upstreams, one open session and two ended ones.
func NewFakeServer() *FakeServer {
	return &FakeServer{
		Readiness: l4.Readiness{Ready: true},
		Upstreams: []upstream.Status{
			{Name: "orders_db", Required: true, Reached: true, ReachedAt: BeforeNoon(time.Hour), Active: 1, StartTLS: "postgres", TLS: true,
				Endpoints: []upstream.EndpointStatus{
					{Endpoint: "db1.internal:5432", LastAddress: "10.0.0.1:5432", LastSuccess: BeforeNoon(3 * time.Second), LastReason: outcome.OK,
						Addresses: []upstream.AddressStatus{{Address: "10.0.0.1:5432", Health: "healthy", HealthSince: BeforeNoon(time.Hour), Breaker: "closed", Sessions: 1, Preconnected: 2}}},
					{Endpoint: "db2.internal:5432", LastAddress: "10.0.0.2:5432", LastFailure: BeforeNoon(90 * time.Second), LastReason: outcome.Refused,
						LastError: "dial orders_db 10.0.0.2:5432: connect: connection refused",
						Addresses: []upstream.AddressStatus{{Address: "10.0.0.2:5432", Health: "unhealthy", HealthSince: BeforeNoon(time.Minute), Breaker: "open", NextTrial: BeforeNoon(-4 * time.Second),
							LastError: "dial orders_db 10.0.0.2:5432: connect: connection refused", LastErrorAt: BeforeNoon(10 * time.Second)}}},
				}},
			{Name: "mail", Endpoints: []upstream.EndpointStatus{{Endpoint: "mail.internal:25"}}},
		},
		Live: []outcome.Record{
			{ID: "K7QX-41", Start: *BeforeNoon(time.Minute), Listener: "postgres", Client: "127.0.0.1:40000", Upstream: "orders_db", Endpoint: "db1.internal:5432",
				Address: "10.0.0.1:5432", Stage: outcome.StageRelay, Attempts: 1, BytesUp: 1500, BytesDown: 3 << 20, Establish: outcome.Seconds(4200 * time.Microsecond), Duration: outcome.Seconds(time.Minute)},
		},
		Over: []outcome.Record{
			{ID: "K7QX-40", Start: *BeforeNoon(2 * time.Minute), Listener: "postgres", Client: "127.0.0.1:39998", Upstream: "orders_db", Endpoint: "db1.internal:5432",
				Address: "10.0.0.1:5432", Stage: outcome.StageTLS, Reason: outcome.UpstreamTLSRejected, Cause: "tls orders_db 10.0.0.1:5432: remote error: tls: certificate required",
				Attempts: 3, Duration: outcome.Seconds(1234500 * time.Microsecond)},
			{ID: "K7QX-39", Start: *BeforeNoon(26 * time.Hour), Listener: "postgres", Client: "127.0.0.1:40000", Upstream: "orders_db", Endpoint: "db1.internal:5432",
				Address: "10.0.0.1:5432", Stage: outcome.StageRelay, Reason: outcome.Closed, Attempts: 1, BytesUp: 12, BytesDown: 1023, FirstClose: "downstream",
				Establish: outcome.Seconds(9 * time.Millisecond), Duration: outcome.Seconds(time.Hour), Truncated: true},
		},
		Identities: []certs.Status{
			{Name: "orders", Ready: true, Names: []string{"dns:orders.svc", "spiffe://corp/orders"}, Serial: "4d2", NotBefore: *BeforeNoon(24 * time.Hour),
				NotAfter: Noon().Add(7*24*time.Hour + 16*time.Hour), Loads: 2, Failures: 1, NextRenewal: Noon().Add(5*time.Hour + 10*time.Minute), LastError: "load client.crt: no such file or directory"},
		},
	}
}
