package process

import "ambassador/cmd/ambassador/internal/config"

const (
	// webDescriptors are those of an HTTP server beside its connections: the
	// listener, and a connection that another one is making room for.
	webDescriptors = 2
	// fileDescriptors are those of what is kept current: a watch or a connection to
	// the issuer, and a file that is being read.
	fileDescriptors = 3
)

// reservedDescriptors is how many descriptors a process with this configuration
// needs that are not l4's.
func reservedDescriptors(f *config.File, connections int) int {
	n := fileDescriptors * (len(f.Identities) + len(f.RootFiles()) + len(f.UsersPaths()))
	if !f.Admin.Off {
		n += connections + webDescriptors
	}
	if f.Metrics.Listen != "" {
		n += connections + webDescriptors
	}
	return n
}
