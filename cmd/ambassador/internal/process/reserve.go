package process

import "ambassador/cmd/ambassador/internal/config"

const (
	// webDescriptors are the descriptors of an HTTP server besides its connections: the
	// listener, and a connection that is closing to make room for another.
	webDescriptors = 2
	// fileDescriptors are the descriptors for a file or identity that is kept current:
	// a watch or a connection to the issuer, and a file that is being read.
	fileDescriptors = 3
	// collectorDescriptors are the connections to a collector, one for each signal, and a
	// lookup that asks for A and AAAA.
	collectorDescriptors = 4
	// serviceDescriptors are those for a Service whose endpoints are followed: two watches,
	// each with a connection where the API server has no HTTP/2, and with the token or the
	// roots, which are read for each request.
	serviceDescriptors = 4
)

// reservedDescriptors is how many descriptors a process with this configuration needs
// besides those of l4.
func reservedDescriptors(f *config.File, connections int) int {
	n := fileDescriptors * (len(f.Identities) + len(f.RootFiles()) + len(f.UsersPaths()))
	for _, u := range f.Upstreams {
		for _, e := range u.Endpoints {
			if e.Kubernetes != "" {
				n += serviceDescriptors
			}
		}
	}
	if !f.Admin.Off {
		n += connections + webDescriptors
	}
	if f.Metrics.Listen != "" {
		n += connections + webDescriptors
	}
	if f.Tracing.OTLP != "" {
		n += collectorDescriptors
	}
	return n
}
