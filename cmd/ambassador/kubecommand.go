package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/kubeinject"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/program"
)

const (
	// maxManifests bounds what inject reads, in bytes.
	maxManifests = 32 << 20
	// maxAnnotation bounds a configuration in an annotation, in bytes. Kubernetes keeps at
	// most 256 KiB of annotations for a pod, and others need some of it.
	maxAnnotation = 192 << 10
	// configFolder is where the sidecar has its configuration.
	configFolder = "/etc/ambassador"
)

// kubeCommand returns the command `kube`.
func (a *app) kubeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "kube", Short: "Add the ambassador to Kubernetes manifests", Args: unknownCommand,
		Example: "  ambassador kube inject -f deploy.yaml --image registry.example.com/ambassador:v1 --config ambassador | kubectl apply -f -",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.injectCommand())
	return cmd
}

// injectFlags are the flags of inject.
type injectFlags struct {
	file, image, config, secret string
	probePort                   int
	uninject                    bool
}

func (a *app) injectCommand() *cobra.Command {
	var flags injectFlags
	cmd := &cobra.Command{
		Use: "inject -f FILE", Short: "Add the sidecar to the pods of manifests, or remove it", Args: cobra.NoArgs,
		Long: `Reads Kubernetes manifests and prints them with the ambassador as a native sidecar (an
init container with restartPolicy: Always, Kubernetes 1.29 or newer) in every pod
template. Comments and order stay as they are. Other kinds are printed unchanged; a
workload without containers, or a template of Helm, is an error. Standard error has a line for each manifest. A second injection with the same
flags changes nothing; other flags replace the sidecar; --uninject removes it.

--config is the name of a ConfigMap with the key ambassador.yaml, or a file. A file is
checked, and becomes an annotation of the pod. --secret is the name of a Secret, as
cert-manager makes them: its keys are files beside the configuration, so that it names
them tls.crt, tls.key and ca.crt.

The annotation ambassador/inject: disabled, at a workload or its pod template, keeps it
unchanged. Pods with hostNetwork are skipped. Environment, commands and probes of the
other containers are left alone: they connect to the listeners on 127.0.0.1.`,
		Example: `  ambassador kube inject -f deploy.yaml --image registry.example.com/ambassador:v1 --config ambassador --secret db-client
  helm template shop | ambassador kube inject -f - --image registry.example.com/ambassador:v1 --config ./ambassador.yaml | kubectl apply -f -
  ambassador kube inject -f deploy.yaml --uninject`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := flags.check(cmd); err != nil {
				return usageError(cmd, err)
			}
			return a.inject(&flags)
		},
	}
	cmd.Flags().StringVarP(&flags.file, "file", "f", "", "the manifests, in YAML or JSON; - is standard input")
	cmd.Flags().StringVar(&flags.image, "image", "", "the image of the ambassador, in your registry")
	cmd.Flags().StringVar(&flags.config, "config", "", "the name of a ConfigMap; or a file, which ends in .yaml or has a / in its path")
	cmd.Flags().StringVar(&flags.secret, "secret", "", "the name of a Secret whose keys are files beside the configuration")
	cmd.Flags().IntVar(&flags.probePort, "probe-port", 9902, "the port of metrics.listen in the ConfigMap, for the kubelet; 0: the probes execute \"ambassador wait\" instead")
	cmd.Flags().BoolVar(&flags.uninject, "uninject", false, "remove the sidecar instead")
	return cmd
}

// check returns errors in the flags.
func (f *injectFlags) check(cmd *cobra.Command) error {
	if f.file == "" {
		return errors.New("-f: required; give a file of manifests, or - for standard input")
	}
	for _, name := range []string{"image", "config", "secret", "probe-port"} {
		given := cmd.Flags().Changed(name)
		switch {
		case given && f.uninject:
			return fmt.Errorf("--%s has no effect with --uninject; remove one of the two", name)
		case !given && !f.uninject && (name == "image" || name == "config"):
			return fmt.Errorf("--%s: required", name)
		}
	}
	if f.configIsFile() && cmd.Flags().Changed("probe-port") {
		return errors.New("--probe-port is for a ConfigMap; the file of --config says it in metrics.listen")
	}
	return nil
}

func (f *injectFlags) configIsFile() bool {
	return strings.Contains(f.config, "/") || strings.HasSuffix(f.config, ".yaml") || strings.HasSuffix(f.config, ".yml")
}

// inject prints the manifests with the sidecar, or without it. It prints nothing if there
// is a mistake in one of them.
func (a *app) inject(flags *injectFlags) error {
	source, name, err := a.manifests(flags.file)
	if err != nil {
		return &program.ExitError{Code: 2, Err: err}
	}
	var (
		out     []byte
		results []kubeinject.Result
	)
	if flags.uninject {
		out, results, err = kubeinject.Uninject(name, source)
	} else {
		var sidecar kubeinject.Sidecar
		if sidecar, err = flags.sidecar(); err == nil {
			out, results, err = kubeinject.Inject(name, source, sidecar)
		}
	}
	if err != nil {
		return &program.ExitError{Code: 2, Err: err}
	}
	for _, r := range results {
		fmt.Fprintln(a.Stderr, output.Visible(r.String()))
	}
	_, err = a.Stdout.Write(out)
	return err
}

// manifests reads a file or standard input, and returns its name in messages.
func (a *app) manifests(file string) (text []byte, name string, err error) {
	if file != "-" {
		text, err = program.ReadGiven(file, maxManifests)
		return text, file, err
	}
	text, err = io.ReadAll(io.LimitReader(a.Stdin, maxManifests+1))
	if err == nil && len(text) > maxManifests {
		err = fmt.Errorf("standard input: more than %d MiB", maxManifests>>20)
	}
	return text, "standard input", err
}

// sidecar is what the flags say.
func (f *injectFlags) sidecar() (kubeinject.Sidecar, error) {
	s := kubeinject.Sidecar{Image: f.image, Secret: f.secret, ProbePort: f.probePort}
	if !f.configIsFile() {
		s.ConfigMap = f.config
		return s, nil
	}
	text, err := program.ReadGiven(f.config, config.MaxSize)
	if err != nil {
		return s, err
	}
	if len(text) > maxAnnotation {
		return s, fmt.Errorf("%s: %d KiB are too much for an annotation, whose bound is %d KiB; put it into a ConfigMap, and give its name", f.config, len(text)>>10, maxAnnotation>>10)
	}
	noVariables := func(string) (string, bool) { return "", false } // the container has none
	parsed, err := config.Parse(f.config, configFolder, text, noVariables)
	if err != nil {
		return s, err
	}
	s.Config = string(bytes.TrimPrefix(text, []byte("\ufeff")))
	s.ProbePort, err = probePort(f.config, parsed)
	return s, err
}

// probePort is the port that the kubelet can ask. It is zero if there is none and the
// probes have to execute `ambassador wait`.
func probePort(name string, f *config.File) (int, error) {
	host, text, _ := net.SplitHostPort(f.Metrics.Listen)
	port, _ := strconv.Atoi(text)
	ip, _ := netip.ParseAddr(host)
	if port > 0 && !ip.IsLoopback() && host != "localhost" {
		return port, nil
	}
	if f.Admin.Off || f.Admin.Listen != "" {
		return 0, fmt.Errorf(`%s: the probes need metrics: {listen: ":9902"}, or the default socket of the admin API`, name)
	}
	return 0, nil
}
