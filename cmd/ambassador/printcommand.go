package main

import (
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// assetFiles are the files that print prints.
//
//go:embed assets/alerts.yml assets/dashboard.json assets/ambassador.service assets/ambassador@.service assets/ambassador.socket assets/ambassador.yaml assets/kubernetes
var assetFiles embed.FS

// asset is a file that other programs expect.
type asset struct{ name, file, about string }

// assets returns the files in the order in which print lists them.
func assets() []asset {
	return []asset{
		{"config", "ambassador.yaml", "a configuration file to start with, with comments"},
		{"unit", "ambassador.service", "a hardened systemd unit"},
		{"instances", "ambassador@.service", "the same for several ambassadors: /etc/ambassador/NAME.yaml each"},
		{"socket", "ambassador.socket", "an example of a systemd socket: ports below 1024, restarts that refuse no client"},
		{"alerts", "alerts.yml", "alerting rules for Prometheus"},
		{"dashboard", "dashboard.json", "a dashboard for Grafana: Dashboards, New, Import"},
		{"kubernetes/sidecar", "kubernetes/sidecar.yaml", "a Deployment with the ambassador as a sidecar"},
		{"kubernetes/job", "kubernetes/job.yaml", "a Job with a sidecar, which ends"},
		{"kubernetes/daemonset", "kubernetes/daemonset.yaml", "an ambassador on each node, for programs of the node itself"},
		{"kubernetes/configmap", "kubernetes/configmap.yaml", "the configuration of sidecar and job"},
		{"kubernetes/secret", "kubernetes/secret.yaml", "their certificate, in the layout of cert-manager"},
		{"kubernetes/networkpolicy", "kubernetes/networkpolicy.yaml", "lets the pods connect to the database alone"},
		{"kubernetes/podmonitor", "kubernetes/podmonitor.yaml", "lets the Prometheus Operator scrape them"},
		{"kubernetes/kustomization", "kubernetes/kustomization.yaml", "a base for kustomize of these files"},
		{"kubernetes/rbac", "kubernetes/rbac.yaml", "the Roles with which endpoints and Secrets of Kubernetes are followed"},
	}
}

// assetList has a line for each file whose name has the prefix, for help and for print
// without NAME.
func assetList(prefix string) string {
	var b strings.Builder
	for _, a := range assets() {
		if strings.HasPrefix(a.name, prefix) {
			fmt.Fprintf(&b, "  %-24s %s\n", a.name, a.about)
		}
	}
	return b.String()
}

func (a *app) printCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "print [NAME]", Short: "Print a file that other programs expect: units, alerts, dashboard, config, manifests",
		Long: "Prints a file that fits this version, to standard output. Without NAME it lists them:\n\n" + assetList(""),
		Example: `  ambassador print config > /etc/ambassador/ambassador.yaml
  ambassador print unit > /etc/systemd/system/ambassador.service
  ambassador print alerts > /etc/prometheus/ambassador.yml
  ambassador print kubernetes sidecar`,
		Args:              oneName,
		ValidArgsFunction: completeAssets,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				_, err := fmt.Fprint(a.Stdout, assetList(""))
				return err
			}
			return a.printAsset(cmd, args[0])
		},
	}
	cmd.AddCommand(a.printKubernetesCommand())
	return cmd
}

func oneName(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usageError(cmd, errors.New("print takes one NAME"))
	}
	return nil
}

// kubernetesAssets is how the names of manifests begin.
const kubernetesAssets = "kubernetes/"

// printKubernetesCommand returns the command `print kubernetes`.
func (a *app) printKubernetesCommand() *cobra.Command {
	var folder string
	cmd := &cobra.Command{
		Use: "kubernetes [NAME]", Short: "Print a Kubernetes manifest, or write all of them to a folder",
		Long: "Prints a manifest to standard output, or writes all of them to a folder, as a base for\nkustomize. Without NAME it lists them:\n\n" + assetList(kubernetesAssets),
		Example: `  ambassador print kubernetes job
  ambassador print kubernetes --output-dir base`,
		Args: oneName,
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return completeNames(kubernetesAssets, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case folder != "" && len(args) > 0:
				return usageError(cmd, errors.New("--output-dir writes every manifest; give no NAME with it"))
			case folder != "":
				return writeManifests(folder)
			case len(args) == 0:
				_, err := fmt.Fprint(a.Stdout, assetList(kubernetesAssets))
				return err
			}
			return a.printAsset(cmd, kubernetesAssets+args[0])
		},
	}
	cmd.Flags().StringVar(&folder, "output-dir", "", "write every manifest to this `folder`, which is made; a file that exists is an error")
	return cmd
}

// writeManifests writes every manifest to a folder. It replaces no file.
func writeManifests(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for _, f := range assets() {
		name, ok := strings.CutPrefix(f.file, kubernetesAssets)
		if !ok {
			continue
		}
		path := filepath.Join(folder, name)
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s: exists; give another folder, or remove it", path)
		}
		text, err := assetFiles.ReadFile("assets/" + f.file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func completeAssets(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return completeNames("", args)
}

// completeNames completes the name of a file, without its prefix.
func completeNames(prefix string, args []string) (all []cobra.Completion, d cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, f := range assets() {
		if name, ok := strings.CutPrefix(f.name, prefix); ok {
			all = append(all, cobra.CompletionWithDesc(name, f.about))
		}
	}
	return all, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) printAsset(cmd *cobra.Command, name string) error {
	var names []string
	for _, f := range assets() {
		if f.name != name {
			names = append(names, f.name)
			continue
		}
		text, err := assetFiles.ReadFile("assets/" + f.file)
		if err != nil {
			return err
		}
		_, err = a.Stdout.Write(text)
		return err
	}
	return usageError(cmd, fmt.Errorf("unknown file %q; use one of %s", name, strings.Join(names, ", ")))
}
