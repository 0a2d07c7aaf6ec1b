package process

import (
	"testing"

	"ambassador/cmd/ambassador/internal/config"
)

// TestReservedDescriptors asserts that what the process keeps open besides sessions is
// taken off the descriptors for them.
func TestReservedDescriptors(t *testing.T) {
	off := config.File{}
	off.Admin.Off = true
	before := reservedDescriptors(&off, 100)
	off.Upstreams = []*config.UpstreamSection{{Endpoints: []config.EndpointSection{{Kubernetes: "default/db:5432"}, {Address: "db:5432"}, {Kubernetes: "default/db:pg"}}}}
	if n := reservedDescriptors(&off, 100) - before; n != 2*serviceDescriptors {
		t.Errorf("%d descriptors for two Services, want %d", n, 2*serviceDescriptors)
	}
	off.Admin.Off = false
	if n := reservedDescriptors(&off, 100) - before; n != 2*serviceDescriptors+100+webDescriptors {
		t.Errorf("%d descriptors with the admin server", n)
	}
}
