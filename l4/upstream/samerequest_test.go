package upstream

import (
	"testing"

	"ambassador/l4/tlscause"
)

// Connections share what they keep of the same server's request.
func TestRequestsAreShared(t *testing.T) {
	var a Address
	first := a.sameRequest(&tlscause.Request{CAs: "CN=x"})
	if a.sameRequest(&tlscause.Request{CAs: "CN=x"}) != first || a.sameRequest(&tlscause.Request{CAs: "CN=y"}) == first || a.sameRequest(nil) != nil {
		t.Error("equal requests are not one, or others are")
	}
}
