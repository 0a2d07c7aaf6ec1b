package process

import "ambassador/cmd/ambassador/internal/config"

const (
	// webDescriptors are the descriptors of an HTTP server besides its connections: the
	// listener, and a connection that is closing to make room for another.
	webDescriptors = 2
	// fileDescriptors are the descriptors for a file or identity that is kept current:
	// a watch or a connection to the issuer, and a file that is being read.
	fileDescriptors = 3
)

// reservedDescriptors is how many descriptors a process with this configuration needs
// besides those of l4.
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
