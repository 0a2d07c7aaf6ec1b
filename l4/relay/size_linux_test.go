package relay

import (
	"testing"
	"unsafe"
)

// A quiet session costs one flow: the sizes are those of Go's allocator, which rounds
// up to the next of its classes (288, 320, 352, 384 bytes).
func TestSizeOfAQuietSession(t *testing.T) {
	for _, c := range []struct {
		name string
		got  uintptr
		most uintptr
	}{
		{"flow", unsafe.Sizeof(flow{}), 320},
		{"tlsSide", unsafe.Sizeof(tlsSide{}), 96},
		{"Transport", unsafe.Sizeof(Transport{}), 48},
	} {
		if c.got > c.most {
			t.Errorf("%s has %d bytes, want at most %d", c.name, c.got, c.most)
		}
	}
}
