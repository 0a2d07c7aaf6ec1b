package l4

import (
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
)

// connect makes many clients of the first listener, which cost this process only one
// descriptor each.
func connect(t testing.TB, server *Server, many int) {
	t.Helper()
	to := &unix.SockaddrInet4{Port: server.listeners[0].Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
	fds := make([]int, 0, many)
	t.Cleanup(func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
	for range many {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			fds = append(fds, fd)
			err = unix.Connect(fd, to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Many clients that connect and send nothing end at their handshake deadline and not
// before, and their memory is free again.
func TestCrowdOfSilentClients(t *testing.T) {
	parks(t)
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	const many = 8000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 2*many+500 {
		t.Skipf("%d descriptors are too few for both ends of %d connections", limit.Cur, many)
	}
	cfg, _, _ := tlsListener(t, "127.0.0.1:1")
	cfg.MaxSessions = many
	cfg.Listeners[0].Timeouts.Handshake = 3 * time.Second
	f := serve(t, Options{}, cfg)
	before := memoryInUse()
	connect(t, f.Server, many)
	f.until("all to be there, or dropped", func() bool { return f.parked() == many || f.seq.Load() == many })
	during := memoryInUse()
	for range many {
		if r := f.record(); r.Reason != outcome.HandshakeTimeout {
			t.Fatalf("record: %+v", r)
		}
	}
	f.until("the last to be gone", func() bool { return f.active() == 0 })
	f.recent = outcome.Recent{} // it keeps the last 4096 records, of any client
	after := memoryInUse()
	t.Logf("%d silent clients: %d KiB, and %d KiB afterwards", many, (during-before)>>10, (after-before)>>10)
	if after-before > 4<<20 {
		t.Errorf("%d KiB are still in use", (after-before)>>10)
	}
}

// The memory cost of a client that has connected and sent nothing.
func BenchmarkSilentClients(b *testing.B) {
	cfg := oneUpstream("127.0.0.1:1")
	cfg.Listeners[0].Timeouts.Handshake = time.Hour
	cfg.Listeners[0].TLS = &ServerTLS{}
	server := New(b.Context(), Options{})
	defer server.Shutdown(b.Context(), Drain{})
	if err := server.Apply(cfg); err != nil {
		b.Fatal(err)
	}
	const many = 3000
	before, goroutines, start := memoryInUse(), runtime.NumGoroutine(), processorTime()
	connect(b, server, many)
	for server.active() < many {
		runtime.Gosched()
	}
	b.ReportMetric(float64((processorTime()-start).Microseconds())/many, "cpu-us/client")
	b.ReportMetric(float64(memoryInUse()-before)/many, "B/client")
	b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/many, "goroutines/client")
}

func memoryInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

func processorTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u) //nolint:errcheck // it never fails
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// The cost of a session on a TLS listener, from connect to close.
func BenchmarkTerminatedSession(b *testing.B) {
	cert, _ := l4test.SelfSigned(b)
	cfg := oneUpstream(l4test.Backend(b, l4test.Echo))
	server := &tls.Config{Certificates: []tls.Certificate{cert}}
	server.SetSessionTicketKeys([][32]byte{{1}})
	cfg.Listeners[0].TLS = &ServerTLS{Terminate: func(*tls.ClientHelloInfo) (Termination, error) { return Termination{Config: server}, nil }}
	s := New(b.Context(), Options{})
	defer s.Shutdown(b.Context(), Drain{})
	if err := s.Apply(cfg); err != nil {
		b.Fatal(err)
	}
	client := &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(1), ServerName: "x"}
	buf := make([]byte, 1)
	start := processorTime()
	for b.Loop() {
		c, err := tls.Dial("tcp", s.listeners[0].Addr().String(), client)
		if err != nil {
			b.Fatal(err)
		}
		c.Write(buf)
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
	b.ReportMetric(float64((processorTime()-start).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
}
