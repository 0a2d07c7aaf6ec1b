package main

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// kind is a kind of load: what each of its connections does until end. It returns how
// much was done (bytes, requests or connections) and how long each request or
// connection took.
type kind struct {
	name    string
	conns   int
	unit    float64 // of the work, for the CPU time and the throughput
	formats [4]string
	want    byte // of the target
	// load works on a connection that was opened before the turn. If nil, connections
	// are opened during the turn, and they are the work.
	load func(conn net.Conn, end time.Time) (done float64, took []time.Duration, err error)
}

var (
	bulkFormats = [4]string{"%.3f s/GB", "%.2f GB/s", "%.0f", "%.0f"}
	pingFormats = [4]string{"%.2f µs", "%.0f/s", "%.0f µs", "%.0f µs"}
)

// kinds are the rows of each mode.
var kinds = []kind{
	{"bulk-up", 8, 1e9, bulkFormats, wantUp, bulkUp},
	{"bulk-down", 8, 1e9, bulkFormats, wantDown, bulkDown},
	{"ping", 32, 1, pingFormats, wantEcho, ping},
	{"conn", 16, 1, pingFormats, wantEcho, nil},
}

const (
	blockSize = 64 << 10
	pingSize  = 512
	// grace is how long after its end a turn may wait for the last answer.
	grace = 5 * time.Second
)

// route is the way through a program to the target.
type route struct {
	addr  string      // where the program listens
	tls   *tls.Config // of the client; nil: TCP
	socks string      // the destination to ask for, by SOCKS5; empty: none
}

func (r route) dial(deadline time.Time) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", r.addr, grace)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(deadline)
	switch {
	case r.socks != "":
		err = askSOCKS(conn, r.socks)
	case r.tls != nil:
		client := tls.Client(conn, r.tls)
		conn, err = client, client.Handshake()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// askSOCKS is a client's CONNECT to an IPv4 address (RFC 1928).
func askSOCKS(conn net.Conn, destination string) error {
	to, err := net.ResolveTCPAddr("tcp4", destination)
	if err != nil {
		return err
	}
	if _, err := conn.Write([]byte{5, 1, 0}); err != nil {
		return err
	}
	answer := make([]byte, 10)
	if _, err := io.ReadFull(conn, answer[:2]); err != nil {
		return err
	}
	request := append([]byte{5, 1, 0, 1}, to.IP.To4()...)
	if _, err := conn.Write(binary.BigEndian.AppendUint16(request, uint16(to.Port))); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if answer[1] != 0 {
		return fmt.Errorf("SOCKS5: reply %d", answer[1])
	}
	return nil
}

// open opens a connection to the target, which answers the byte that says what to do.
func (r route) open(want byte, deadline time.Time) (net.Conn, error) {
	conn, err := r.dial(deadline)
	if err != nil {
		return nil, err
	}
	if err := exchange(conn, []byte{want}, make([]byte, 1)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// openAll opens the connections of a turn. On an error it closes those that it opened.
func (r route) openAll(k kind, deadline time.Time) ([]net.Conn, error) {
	conns := make([]net.Conn, k.conns)
	errs := make([]error, k.conns)
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() { conns[i], errs[i] = r.open(k.want, deadline) })
	}
	wg.Wait()
	err := errors.Join(errs...)
	if err != nil {
		closeAll(conns)
	}
	return conns, err
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		if c != nil {
			c.Close()
		}
	}
}

// measure gives the program one turn.
func (r *running) measure(k kind, d time.Duration) (sample, error) {
	conns := make([]net.Conn, k.conns)
	if k.load != nil {
		var err error
		if conns, err = r.route.openAll(k, time.Now().Add(d+2*grace)); err != nil {
			return sample{}, err
		}
	}
	defer closeAll(conns)
	before, err := r.cpuTime()
	if err != nil {
		return sample{}, err
	}
	start := time.Now()
	done, took, err := r.route.turn(k, conns, start.Add(d))
	if err != nil {
		return sample{}, fmt.Errorf("%w; its log ends with %q", err, r.logTail())
	}
	elapsed := time.Since(start).Seconds()
	after, err := r.cpuTime()
	if err != nil {
		return sample{}, err
	}
	if done == 0 {
		return sample{}, errors.New("nothing was done in time; use a longer -duration")
	}
	s := sample{cpu: (after - before).Seconds() / done * k.unit, rate: done / elapsed / k.unit}
	if len(took) > 0 {
		s.cpu *= 1e6
		slices.Sort(took)
		s.p50, s.p99 = micros(took[len(took)/2]), micros(took[len(took)*99/100])
	}
	return s, nil
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// turn does the work of a turn on all connections at once.
func (r route) turn(k kind, conns []net.Conn, end time.Time) (done float64, took []time.Duration, err error) {
	var (
		mu   sync.Mutex
		errs []error
		wg   sync.WaitGroup
	)
	for _, conn := range conns {
		wg.Go(func() {
			var n float64
			var lat []time.Duration
			var err error
			if k.load != nil {
				n, lat, err = k.load(conn, end)
			} else {
				lat, err = r.connect(k.want, end)
				n = float64(len(lat))
			}
			mu.Lock()
			defer mu.Unlock()
			done, took, errs = done+n, append(took, lat...), append(errs, err)
		})
	}
	wg.Wait()
	return done, took, errors.Join(errs...)
}

// bulkUp sends blocks until end, and has the target count them.
func bulkUp(conn net.Conn, end time.Time) (float64, []time.Duration, error) {
	sent, err := sendBlocks(conn, end)
	if err != nil {
		return 0, nil, err
	}
	var count [8]byte
	if _, err := io.ReadFull(conn, count[:]); err != nil {
		return 0, nil, err
	}
	if got := binary.BigEndian.Uint64(count[:]); got != sent {
		return 0, nil, fmt.Errorf("the target received %d of %d bytes", got, sent)
	}
	return float64(sent), nil, nil
}

// bulkDown has the target send blocks until end, and counts them.
func bulkDown(conn net.Conn, end time.Time) (float64, []time.Duration, error) {
	left := max(time.Until(end), 0)
	if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, uint64(left))); err != nil {
		return 0, nil, err
	}
	n, err := receiveBlocks(conn)
	return float64(n), nil, err
}

// ping sends one message after the other until end.
func ping(conn net.Conn, end time.Time) (float64, []time.Duration, error) {
	message, echo := bytes.Repeat([]byte{'x'}, pingSize), make([]byte, pingSize)
	var took []time.Duration
	for at := time.Now(); at.Before(end); {
		if err := exchange(conn, message, echo); err != nil {
			return 0, nil, err
		}
		now := time.Now()
		took = append(took, now.Sub(at))
		at = now
	}
	return float64(len(took)), took, nil
}

// connect makes one connection after the other, each with one byte there and back,
// until end.
func (r route) connect(want byte, end time.Time) (took []time.Duration, err error) {
	for at := time.Now(); at.Before(end); {
		conn, err := r.open(want, end.Add(grace))
		if err != nil {
			return nil, err
		}
		conn.Close()
		now := time.Now()
		took = append(took, now.Sub(at))
		at = now
	}
	return took, nil
}

func exchange(conn net.Conn, message, echo []byte) error {
	if _, err := conn.Write(message); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, echo); err != nil {
		return err
	}
	if !bytes.Equal(message, echo) {
		return errors.New("the echo differs from the message")
	}
	return nil
}
