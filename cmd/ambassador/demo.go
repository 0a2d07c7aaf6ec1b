package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"ambassador/certs/embedded"
)

// demoTimeout bounds each step of `demo --once`.
const demoTimeout = 10 * time.Second

// demoCommand is `demo`.
func (a *app) demoCommand() *cobra.Command {
	var (
		once   bool
		listen string
	)
	cmd := &cobra.Command{
		Use: "demo", Short: "See it work: a private CA, a service that demands certificates, a plain port before it",
		Example: "  ambassador demo\n  ambassador demo --once",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := newDemo()
			if err != nil {
				return err
			}
			defer d.close()
			return d.run(cmd.Context(), a, listen, once)
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "make one round trip, show that the service refuses others, and exit")
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "where the plain port is")
	return cmd
}

// demo is a CA, a service that only takes the CA's certificates, and files for a
// client of it.
type demo struct {
	ca      *embedded.CA
	service net.Listener
	tls     *tls.Config
	folder  string
	conns   sync.WaitGroup
}

// newDemo starts the service. Its owner calls close.
func newDemo() (*demo, error) {
	d := &demo{}
	if err := d.prepare(); err != nil {
		d.close()
		return nil, err
	}
	d.conns.Go(d.serve)
	return d, nil
}

func (d *demo) prepare() (err error) {
	if d.ca, err = embedded.New(); err != nil {
		return err
	}
	server, err := d.ca.Issue([]string{"localhost", "127.0.0.1"}, 24*time.Hour)
	if err != nil {
		return err
	}
	if d.folder, err = os.MkdirTemp("", "ambassador-demo-"); err != nil {
		return err
	}
	cert, key, err := d.ca.IssuePEM([]string{"demo-client"}, 24*time.Hour)
	if err != nil {
		return err
	}
	for name, pem := range map[string][]byte{"client.crt": cert, "client.key": key, "ca.crt": d.ca.RootPEM()} {
		if err := os.WriteFile(filepath.Join(d.folder, name), pem, 0o600); err != nil {
			return err
		}
	}
	d.tls = &tls.Config{Certificates: []tls.Certificate{*server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: d.ca.Roots()}
	d.service, err = net.Listen("tcp", "127.0.0.1:0")
	return err
}

func (d *demo) close() {
	if d.service != nil {
		d.service.Close()
	}
	d.conns.Wait()
	if d.folder != "" {
		os.RemoveAll(d.folder)
	}
	if d.ca != nil {
		d.ca.Close()
	}
}

// serve accepts until close.
func (d *demo) serve() {
	for {
		c, err := d.service.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go d.echo(tls.Server(c, d.tls)) // ends with its client
		}
	}
}

// echo answers each line with the name in the client's certificate.
func (d *demo) echo(c *tls.Conn) {
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), demoTimeout)
	defer cancel()
	if c.HandshakeContext(ctx) != nil {
		return
	}
	name := "nobody"
	if certs := c.ConnectionState().PeerCertificates; len(certs) > 0 && len(certs[0].DNSNames) > 0 {
		name = certs[0].DNSNames[0]
	}
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		if _, err := fmt.Fprintf(c, "%s, by mutual TLS, to %s\n", lines.Text(), name); err != nil {
			return
		}
	}
}

// run puts the ambassador in front of the service, by the same configuration
// that `forward` makes.
func (d *demo) run(ctx context.Context, a *app, listen string, once bool) error {
	in := func(name string) string { return filepath.Join(d.folder, name) }
	f, err := forwardFile(&forwardFlags{listen: listen, to: []string{d.service.Addr().String()},
		cert: in("client.crt"), key: in("client.key"), ca: in("ca.crt")})
	if err != nil {
		return &exitError{Code: 2, Err: err}
	}
	if once {
		return d.runOnce(ctx, a, f)
	}
	return d.runOn(ctx, a, f)
}

// runOn serves until a signal.
func (d *demo) runOn(ctx context.Context, a *app, f *File) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.Log.Format = "text"
	signals, stop := endSignals()
	defer stop()
	p, err := a.start(ctx, f, serveOptions{signals: signals})
	if err != nil {
		return err
	}
	defer p.close()
	host, port, _ := net.SplitHostPort(p.server.Listening()[0].Addr)
	fmt.Fprintf(a.stdout, `
A service at %s takes only TLS with a certificate of a CA that was made for this demo.
In front of it, a plain port at %s:%s. Try it, in another terminal:

    echo hello | nc -N %s %s

Each connection is one line here. The whole story of one, by the client's own port:

    ambassador why %s:PORT

%s to end.
`, d.service.Addr(), host, port, host, port, host, "Ctrl-C")
	return p.wait()
}

// runOnce proves that a plain client is answered, and that the service refuses
// a client without a certificate.
func (d *demo) runOnce(ctx context.Context, a *app, f *File) error {
	ctx, cancel := context.WithTimeout(ctx, 3*demoTimeout)
	defer cancel()
	f.Admin.Off = true
	f.Log.Level = "warn"
	p, err := a.start(ctx, f, serveOptions{})
	if err != nil {
		return err
	}
	defer p.close()
	answer, err := plainRoundTrip(ctx, p.server.Listening()[0].Addr, "hello")
	if err != nil {
		return fmt.Errorf("round trip through the ambassador: %w", err)
	}
	fmt.Fprintf(a.stdout, "plain client, through the ambassador: sent %q, the service answered %q\n", "hello", answer)
	refusal := d.withoutCertificate(ctx)
	if refusal == nil {
		return errors.New("the service answered a client that has no certificate")
	}
	fmt.Fprintf(a.stdout, "client without a certificate, straight to the service: refused (%v)\n", refusal)
	return nil
}

// plainRoundTrip sends a line in plain TCP, ends, and reads the answer.
func plainRoundTrip(ctx context.Context, addr, line string) (string, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(demoTimeout))
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return "", err
	}
	c.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(c)
	if err == nil && !strings.HasPrefix(string(answer), line) {
		err = fmt.Errorf("the answer is %q", answer)
	}
	return strings.TrimSpace(string(answer)), err
}

// withoutCertificate is how the service treats a client that trusts it but has
// no certificate: the error it gets, nil if it was served.
func (d *demo) withoutCertificate(ctx context.Context) error {
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: d.ca.Roots(), ServerName: "localhost"}}
	c, err := dialer.DialContext(ctx, "tcp", d.service.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(demoTimeout))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1)) // in TLS 1.3 the refusal arrives here
	return err
}
