package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ambassador/certs"
	"ambassador/certs/embedded"
	"ambassador/cmd/ambassador/internal/admin"
	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/logs"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/process"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/l4/bind"
	"ambassador/l4/descriptors"
)

// caFlags are the flags of `ca`.
type caFlags struct {
	listen, storage, passwordFile string
	names                         []string
}

// caCommand returns the command `ca`.
func (a *app) caCommand() *cobra.Command {
	var flags caFlags
	cmd := &cobra.Command{
		Use: "ca", Short: "Run a small certificate authority, for development and small private use",
		Long: `Runs a certificate authority that speaks step-ca's protocol, until SIGTERM or SIGINT,
and prints what to write under identities to get certificates from it. One JWK
provisioner enrols; its password is in --password-file, or in a file that is made.

Without --storage all of it is gone when it ends. With it, root and provisioner stay
the same; the root's own key is not kept. The password in --password-file encrypts
the keys in --storage, too: without it they are only guarded by their mode, 0600.
The folder must be writable by us alone. Where others can reach the address, give a
password of 12 characters or more: they can get the provisioner's key, and try.`,
		Example: `  ambassador ca
  ambassador ca --listen ca.internal:9000 --storage /var/lib/ambassador-ca --password-file pw`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runCA(cmd.Context(), flags)
		},
	}
	cmd.Flags().StringVar(&flags.listen, "listen", "127.0.0.1:9000", "where it listens: HOST:PORT")
	cmd.Flags().StringVar(&flags.storage, "storage", "", "folder that keeps the authority (default: in memory)")
	cmd.Flags().StringVar(&flags.passwordFile, "password-file", "", "file with the provisioner's password, which encrypts the keys in --storage, too (default: a random one in a file that is made)")
	cmd.Flags().StringArrayVar(&flags.names, "name", nil, "another name or address that clients reach it by; may be repeated")
	return cmd
}

// runCA serves until a signal.
func (a *app) runCA(ctx context.Context, flags caFlags) error {
	if err := config.CheckHostPort(flags.listen); err != nil {
		return &program.ExitError{Code: 2, Err: fmt.Errorf("--listen: %w", err)}
	}
	signals, stop := process.EndSignals()
	defer stop()
	files, err := newCAFiles(flags)
	if err != nil {
		return &program.ExitError{Code: 2, Err: err}
	}
	defer files.close()
	names, log := caNames(flags), logs.New(a.Stderr, a.Env)
	defer log.Close()
	gate := &admin.Gate{What: "ca", Max: caConnections(descriptors.Limit()), Log: log.Logger}
	server, err := embedded.NewServer(embedded.ServerOptions{Names: names, Storage: flags.storage, Password: files.password,
		PlainKeys: flags.passwordFile == "", ConnState: gate.State})
	if err != nil {
		return err
	}
	defer server.Close()
	if files.temporary != "" { // otherwise it exists already
		if err := os.WriteFile(files.root, server.RootPEM(), 0o644); err != nil {
			return err
		}
	}
	ln, err := bind.ListenTCP(ctx, flags.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	files.warn(log.Logger, ln.Addr())
	explainCA(a.Stdout, server, files, ln.Addr(), names)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, gate.Listen(ln), log.Logger) }() // received below
	select {
	case err := <-served:
		return err
	case <-signals:
	case <-ctx.Done():
	}
	cancel()
	return <-served
}

// caNames are the names by which clients may reach the authority. The first one is
// printed.
func caNames(flags caFlags) []string {
	var out []string
	host, _, _ := net.SplitHostPort(flags.listen) // already validated
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		out = append(out, host)
	}
	out = append(out, flags.names...)
	if name, err := os.Hostname(); err == nil && len(out) == 0 {
		out = append(out, name)
	}
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// caFiles are the authority's files that its clients need.
type caFiles struct {
	root         string // absolute path of the root certificate
	passwordFile string // absolute path
	password     []byte
	temporary    string // a folder to remove at the end; empty: none
}

// newCAFiles finds or creates the password. The caller must call close.
func newCAFiles(flags caFlags) (*caFiles, error) {
	f, folder := &caFiles{}, flags.storage
	if folder == "" {
		var err error
		if f.temporary, err = os.MkdirTemp("", "ambassador-ca-"); err != nil {
			return nil, err
		}
		folder = f.temporary
	}
	err := f.fill(folder, flags.passwordFile)
	if err != nil {
		f.close()
	}
	return f, err
}

func (f *caFiles) fill(dir, passwordFile string) error {
	folder, err := certs.MakeFolder(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	f.root = absolute(filepath.Join(dir, "root.crt"))
	f.passwordFile = absolute(passwordFile)
	if passwordFile == "" {
		f.passwordFile = absolute(filepath.Join(dir, passwordName))
		if err := makePassword(folder); err != nil {
			return err
		}
	}
	f.password, err = certs.ReadSecret(f.passwordFile)
	return err
}

// passwordName is the file of a generated password.
const passwordName = "provisioner.password"

// makePassword writes a random password unless the file exists. A file that others
// could have written or can read is an error.
func makePassword(folder *certs.Folder) error {
	err := folder.Check(passwordName, true)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return folder.Replace(passwordName, []byte(rand.Text()+"\n"), 0o600)
}

// shortPassword is the minimum length in bytes of a password that cannot be guessed.
// Like step-ca, the CA gives every client the provisioner's key, encrypted with the
// password.
const shortPassword = 12

// warn logs what makes the password weak, if the CA listens on the address at.
func (f *caFiles) warn(log *slog.Logger, at net.Addr) {
	if tcp, ok := at.(*net.TCPAddr); ok && !tcp.IP.IsLoopback() && len(f.password) < shortPassword {
		log.Warn("short password: every client of the address gets the provisioner's key and can try passwords; "+
			"give one of 12 characters or more, with a new --storage, or listen on 127.0.0.1", "address", at.String(), "password_file", f.passwordFile, "length", len(f.password))
	}
	if err := certs.Exposed(f.passwordFile); err != nil {
		log.Warn("secret not kept from other users", "setting", "--password-file: "+err.Error())
	}
}

func (f *caFiles) close() {
	if f.temporary != "" {
		os.RemoveAll(f.temporary)
	}
}

// explainCA prints what clients need, and a configuration section to paste.
func explainCA(w io.Writer, server *embedded.Server, f *caFiles, addr net.Addr, names []string) {
	_, port, _ := net.SplitHostPort(addr.String())
	fmt.Fprintf(w, `listening ca %s

root         %s
fingerprint  %s
provisioner  %s
password     %s

Write this under identities, with names of your own; storage makes the certificate
outlive a restart:

identities:
  me:
    step:
      url: %s
      fingerprint: %s
      provisioner: %s
      password_file: %s
      names: [me.internal]
      storage: me-identity
`, addr, output.Visible(f.root), server.Fingerprint(), embedded.ProvisionerName, output.Visible(f.passwordFile),
		"https://"+net.JoinHostPort(strings.Trim(names[0], "[]"), port), config.Quote(server.Fingerprint()), embedded.ProvisionerName, config.Quote(f.passwordFile))
}

// caConnections is the maximum number of connections for `ca`, which uses all
// descriptors itself.
func caConnections(descriptors int) int { return min(max(descriptors/4, 4), 256) }
