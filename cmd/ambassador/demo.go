package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"ambassador/certs/embedded"
	"ambassador/cmd/ambassador/internal/admin"
	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/logs"
	"ambassador/cmd/ambassador/internal/process"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/l4"
	"ambassador/l4/descriptors"
)

const (
	// demoTimeout bounds the round trips of `demo --once`, and how long a client of the
	// service may take to begin.
	demoTimeout = 10 * time.Second
	// demoIdle is how long a client of the service may send nothing.
	demoIdle = 10 * time.Minute
	// demoPause is the pause after the service failed to accept a connection.
	demoPause = 100 * time.Millisecond
	// demoLife is how long the demo's certificates are valid.
	demoLife = 24 * time.Hour
)

// demoCommand returns the command `demo`.
func (a *app) demoCommand() *cobra.Command {
	var (
		once   bool
		listen string
	)
	cmd := &cobra.Command{
		Use: "demo", Short: "See it work: a private CA, a service that demands certificates, a plain port before it",
		Long: `Starts a private CA in memory, a small service that echoes lines and takes only
clients with a certificate of that CA, and an ambassador before it, as ` + "`forward`" + `
would. Prints the nc line to try. Nothing of it is left when it ends.`,
		Example: "  ambassador demo\n  ambassador demo --once",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := newDemo(cmd.Context())
			if err != nil {
				return fmt.Errorf("demo: %w", err)
			}
			defer d.close()
			f, err := d.configuration(listen, a.Stderr)
			if err != nil {
				return &program.ExitError{Code: 2, Err: err}
			}
			if once {
				return d.runOnce(cmd.Context(), a, f)
			}
			return d.run(cmd.Context(), a, f)
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "make one round trip, show that the service refuses others, and exit")
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "where the plain port is")
	return cmd
}

// demo is a CA, a service that accepts only clients with a certificate of the CA, and
// the files of such a client. The caller must call close.
type demo struct {
	ctx     context.Context // its end stops the service and its connections
	cancel  context.CancelFunc
	ca      *embedded.CA
	tls     *tls.Config
	service net.Listener
	folder  string         // mode 0700, owned by us, removed by close
	conns   sync.WaitGroup // the service and its connections
}

// newDemo starts the service.
func newDemo(ctx context.Context) (*demo, error) {
	d := &demo{}
	d.ctx, d.cancel = context.WithCancel(ctx)
	if err := d.prepare(); err != nil {
		d.close()
		return nil, err
	}
	d.conns.Go(d.serve)
	return d, nil
}

func (d *demo) prepare() (err error) {
	if d.folder, err = os.MkdirTemp("", "ambassador-demo-"); err != nil {
		return err
	}
	if d.ca, err = embedded.New(); err != nil {
		return err
	}
	server, err := d.ca.Issue(d.ctx, []string{"localhost", "127.0.0.1"}, demoLife)
	if err != nil {
		return err
	}
	cert, key, err := d.ca.IssuePEM(d.ctx, []string{"demo-client"}, demoLife)
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{"client.crt": cert, "client.key": key, "ca.crt": d.ca.RootPEM()} {
		if err := os.WriteFile(filepath.Join(d.folder, name), text, 0o600); err != nil {
			return err
		}
	}
	d.tls = &tls.Config{Certificates: []tls.Certificate{*server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: d.ca.Roots()}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(d.ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	gate := &admin.Gate{What: "demo service", Max: demoConnections(descriptors.Limit()), Log: slog.New(slog.DiscardHandler)}
	d.service = gate.Listen(ln)
	return nil
}

func (d *demo) close() {
	d.cancel()
	if d.service != nil {
		d.service.Close()
	}
	d.conns.Wait()
	if d.ca != nil {
		d.ca.Close()
	}
	if d.folder != "" {
		os.RemoveAll(d.folder)
	}
}

// serve accepts connections until close.
func (d *demo) serve() {
	for {
		conn, err := d.service.Accept()
		if err == nil {
			d.conns.Go(func() { d.echo(tls.Server(conn, d.tls)) })
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		select {
		case <-time.After(demoPause):
		case <-d.ctx.Done():
			return
		}
	}
}

// echo answers each line with the name in the client's certificate. When the client
// closes its side, every answer has been sent.
func (d *demo) echo(conn *tls.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(d.ctx, func() { conn.NetConn().Close() })
	defer stop()
	ctx, cancel := context.WithTimeout(d.ctx, demoTimeout)
	defer cancel()
	if conn.HandshakeContext(ctx) != nil {
		return // the client is told why
	}
	name := "nobody"
	if chain := conn.ConnectionState().PeerCertificates; len(chain) > 0 {
		name = chain[0].Subject.CommonName
	}
	lines := bufio.NewScanner(conn) // a line of more than 64 KiB ends the connection
	for conn.SetDeadline(time.Now().Add(demoIdle)) == nil && lines.Scan() {
		if _, err := fmt.Fprintf(conn, "hello %s: %s\n", name, lines.Text()); err != nil {
			return
		}
	}
}

// configuration is the configuration that `forward` makes of the same flags, for a log on
// stderr.
func (d *demo) configuration(listen string, stderr io.Writer) (*config.File, error) {
	in := func(name string) string { return filepath.Join(d.folder, name) }
	f, err := forwardFile(&forwardFlags{listenFlags: listenFlags{listen: []string{listen}}, to: []string{d.service.Addr().String()},
		cert: in("client.crt"), key: in("client.key"), ca: in("ca.crt")})
	if err != nil {
		return nil, err
	}
	if !logs.IsTerminal(stderr) {
		f.Log.Format = "text" // a person reads it through a pipe, too
	}
	return f, nil
}

// run serves until a signal.
func (d *demo) run(ctx context.Context, a *app, f *config.File) error {
	signals, stop := process.EndSignals()
	defer stop()
	p, err := process.Start(ctx, a.World, f, process.Options{Signals: signals, Descriptors: demoConnections(descriptors.Limit())})
	if err != nil {
		return err
	}
	defer p.Close()
	d.explain(a.Stdout, p.Listening()[0].Addr)
	return p.Wait()
}

// explain prints what runs where and what to try.
func (d *demo) explain(w io.Writer, plain string) {
	fmt.Fprintf(w, `
A service at %s echoes lines. It speaks TLS 1.3 and takes only clients with a
certificate of a CA that was made a moment ago and lives in this process.
Before it, at %s, an ambassador takes plain TCP. Try it in another terminal:

    echo hi | %s

Every connection is one line here when it ends. More of its story, by the port of
the client in that line, and of all of them:

    ambassador why PORT
    ambassador status

Ctrl-C ends it, and nothing is left.

`, d.service.Addr(), plain, netcatLine(plain))
}

// netcatLine is the command that connects to a printed address. -N closes the sending
// side at the end of the input, so that the service knows that the request is complete.
func netcatLine(addr string) string {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return "nc -N -U " + path
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "nc -N " + addr
	}
	return "nc -N " + host + " " + port
}

// runOnce shows that a plaintext client is answered, and that the same service refuses
// a client without a certificate.
func (d *demo) runOnce(ctx context.Context, a *app, f *config.File) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	f.Admin.Off = true // the demo ends before anyone could use it
	p, err := process.Start(ctx, a.World, f, process.Options{})
	if err != nil {
		return err
	}
	defer p.Close()
	defer p.Drain(l4.Drain{Timeout: time.Second})
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	answer, err := plainRoundTrip(ctx, p.Listening()[0].Addr, "hi")
	if err != nil {
		return fmt.Errorf("demo: plain client, through the ambassador: %w", err)
	}
	fmt.Fprintf(a.Stdout, "plain client, through the ambassador: sent %q, was answered %q\n", "hi", answer)
	refusal := d.withoutCertificate(ctx)
	if refusal == nil || errors.Is(refusal, os.ErrDeadlineExceeded) || ctx.Err() != nil {
		return fmt.Errorf("demo: TLS client without a certificate, straight to the service: it was not refused (%v)", refusal)
	}
	fmt.Fprintf(a.Stdout, "TLS client without a certificate, straight to the service: refused (%v)\n", refusal)
	return nil
}

// plainRoundTrip sends a line to a printed address, closes its side, and reads the
// whole answer. An answer that does not belong to that line is an error.
func plainRoundTrip(ctx context.Context, addr, line string) (string, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	var dialer net.Dialer
	dialer.SetMultipathTCP(false)
	conn, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return "", err
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		if err := half.CloseWrite(); err != nil {
			return "", err
		}
	}
	text, err := io.ReadAll(conn)
	answer := strings.TrimSpace(string(text))
	if err == nil && !strings.HasSuffix(answer, ": "+line) {
		err = fmt.Errorf("the answer is %q", answer)
	}
	return answer, err
}

// withoutCertificate connects as a client that trusts the service and has no
// certificate. It returns the client's error; nil if the client was served.
func (d *demo) withoutCertificate(ctx context.Context) error {
	var plain net.Dialer
	plain.SetMultipathTCP(false)
	dialer := tls.Dialer{NetDialer: &plain, Config: &tls.Config{RootCAs: d.ca.Roots(), ServerName: "localhost"}}
	conn, err := dialer.DialContext(ctx, "tcp", d.service.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()
	if _, err := io.WriteString(conn, "hi\n"); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1)) // in TLS 1.3 the refusal arrives here
	return err
}

// demoConnections is the maximum number of connections to the service of `demo`. Each
// client is a session, which needs two descriptors more.
func demoConnections(descriptors int) int { return min(max(descriptors/16, 4), 1024) }
