package main

// webConnections is how many connections the admin API and the metrics have at a
// time, each, where so many descriptors may be open. Scrapers and people need few.
func webConnections(descriptors int) int { return min(max(descriptors/32, 4), 32) }

// caConnections is the same for `ca`, which has all descriptors to itself.
func caConnections(descriptors int) int { return min(max(descriptors/4, 4), 256) }

// demoConnections is the same for the service of `demo`, whose clients are sessions
// with two descriptors of their own.
func demoConnections(descriptors int) int { return min(max(descriptors/16, 4), 1024) }

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
func (f *File) reservedDescriptors(connections int) int {
	n := fileDescriptors * (len(f.Identities) + len(f.rootFiles()) + len(f.usersPaths()))
	if !f.Admin.Off {
		n += connections + webDescriptors
	}
	if f.Metrics.Listen != "" {
		n += connections + webDescriptors
	}
	return n
}
