package upstream

import (
	"testing"
	"unsafe"
)

// A session that lives for days keeps a Conn: what it needs only at its beginning is
// elsewhere (opening). 112 bytes are a size of the allocator.
func TestSizeOfAConn(t *testing.T) {
	if n := unsafe.Sizeof(Conn{}); n > 112 {
		t.Errorf("Conn has %d bytes, want at most 112", n)
	}
}
