package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/outcome"
	"ambassador/policy"
)

// lateBy is says, but the connection is accepted only after d.
func lateBy(d time.Duration) func(context.Context) (net.Conn, error) { return after(d, says("")) }

// A probe may take what an attempt of a session may take: a server that is slow, but that
// sessions reach, must not become unhealthy.
func TestASlowServerStaysHealthy(t *testing.T) {
	for _, tt := range []struct {
		name    string
		takes   time.Duration
		connect ConnectConfig
		health  time.Duration
		want    policy.Health
	}{
		{"the defaults", 4 * time.Second, ConnectConfig{}, 0, policy.Healthy},
		{"raised timeouts", 15 * time.Second, ConnectConfig{Timeout: 30 * time.Second, AttemptTimeout: 20 * time.Second}, 0, policy.Healthy},
		{"too slow for sessions", 15 * time.Second, ConnectConfig{}, 0, policy.Unhealthy},
		{"health.timeout is shorter", 4 * time.Second, ConnectConfig{}, 2 * time.Second, policy.Unhealthy},
	} {
		t.Run(tt.name, func(t *testing.T) {
			health := testHealth
			health.Timeout = tt.health
			prove(t, Config{Health: health, Connect: tt.connect}, lateBy(tt.takes), func(p *proved) {
				p.await(tt.want, 5*time.Minute)
				cause, _ := p.address().lastFailure()
				if lastLogged := strings.Contains(cause, "health.timeout (2s), where a session may take 10s"); lastLogged != (tt.want == policy.Unhealthy && tt.health != 0) {
					t.Errorf("the cause names health.timeout: %v; %s", lastLogged, cause)
				}
			})
		})
	}
}

// Of two slow addresses one stays usable: where no other is left, a session may wait
// longer, and so may the probe. A probe that began while the other was left, or that ends
// at the same moment, does not count.
func TestOneOfTwoSlowServersStaysUsable(t *testing.T) {
	for _, fall := range []int{1, 3} {
		for range 20 { // the order within a moment is not given
			synctest.Test(t, func(t *testing.T) { proveOneIsUsable(t, fall) })
		}
	}
}

func proveOneIsUsable(t *testing.T, fall int) {
	f := &fakeNet{began: time.Now(), answer: answers{"127.0.0.1:1": lateBy(4 * time.Second), "127.0.0.2:1": lateBy(4 * time.Second)}}
	health := testHealth
	health.Fall = fall
	u, err := New(Config{Name: "u", Endpoints: endpointsOf("127.0.0.1:1", "127.0.0.2:1"), Health: health}, Deps{Dial: f.dial})
	if err != nil {
		t.Fatal(err)
	}
	defer running(t, u)()
	for range 20 {
		time.Sleep(10 * time.Second)
		conn, err := u.connect(t.Context(), noProgress)
		if err != nil {
			t.Fatalf("fall %d, after %v: %v", fall, time.Since(f.began), err)
		}
		conn.Succeeded()
		conn.closePolitely()
	}
}

// greetsAfter accepts at once, and its server says greeting only after d. It then hears
// the rest of the dialogue.
func greetsAfter(d time.Duration, greeting string) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() { // ends with the connection
			defer theirs.Close()
			gone := make(chan struct{})
			go func() { // ends with the connection
				defer close(gone)
				io.Copy(io.Discard, theirs)
			}()
			timer := time.NewTimer(d)
			defer timer.Stop()
			select {
			case <-timer.C:
				io.WriteString(theirs, greeting)
			case <-gone:
			}
			<-gone
		}()
		return ours, nil
	}
}

// starttls_options.timeout bounds the dialogue, and what comes before TLS, apart from the
// rest of the attempt: a mail server may make its clients wait for minutes.
func TestTimeoutOfTheDialogue(t *testing.T) {
	const second = time.Second
	for _, tt := range []struct {
		name    string
		connect ConnectConfig
		bound   time.Duration // StartTLSTimeout
		greets  time.Duration
		proxy   ProxyVersion
		stage   outcome.Stage
		took    time.Duration
	}{
		{"three seconds, and the rest at the last address", ConnectConfig{}, 0, 6 * second, 0, outcome.StageTLS, 9 * second},
		{"a timeout of its own", ConnectConfig{}, 8 * second, 6 * second, 0, outcome.StageTLS, 6 * second},
		{"after a PROXY header", ConnectConfig{}, 8 * second, 6 * second, ProxyV1, outcome.StageTLS, 6 * second},
		{"minutes", ConnectConfig{Timeout: 300 * second, AttemptTimeout: second}, 290 * second, 280 * second, 0, outcome.StageTLS, 280 * second},
		{"too short, at each address", ConnectConfig{Attempts: 1}, 4 * second, 6 * second, 0, outcome.StageStartTLS, 8 * second},
		{"connect.timeout bounds all", ConnectConfig{Timeout: 5 * second}, 8 * second, 6 * second, 0, outcome.StageStartTLS, 5 * second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			late := greetsAfter(tt.greets, "* OK hello\r\nA1 OK go\r\nnot TLS")
			f := &fakeNet{answer: answers{"127.0.0.1:1": late, "127.0.0.2:1": late}}
			r := connectIn(t, f, Config{Endpoints: endpointsOf("127.0.0.1:1", "127.0.0.2:1"), Connect: tt.connect, ProxyProtocol: tt.proxy, StartTLS: "imap", StartTLSTimeout: tt.bound,
				TLS: func(string, string) (*tls.Config, error) { return nil, errors.New("TLS is reached") }}, 0) // no other address is tried then
			if r.err == nil || r.err.Stage != tt.stage || r.took.Round(100*time.Millisecond) != tt.took {
				t.Errorf("%v at %v after %v; want %v after %v", r.err, r.err.Stage, r.took, tt.stage, tt.took)
			}
		})
	}
}
