package starttls

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"
)

// wire is one end of a connection in memory: it serves the peer's bytes and keeps
// what is written to it.
type wire struct {
	io.Reader
	peer     *bytes.Reader
	out      bytes.Buffer
	writeErr error // if not nil, nothing can be written
}

// newWire serves the peer's bytes, then io.EOF.
func newWire(peer string) *wire {
	src := bytes.NewReader([]byte(peer))
	return &wire{Reader: src, peer: src}
}

// slowWire serves the peer's bytes one at a time.
func slowWire(peer string) *wire {
	w := newWire(peer)
	w.Reader = iotest.OneByteReader(w.peer)
	return w
}

// endingWire serves the peer's bytes, then err.
func endingWire(peer string, err error) *wire {
	w := newWire(peer)
	w.Reader = io.MultiReader(w.peer, iotest.ErrReader(err))
	return w
}

func (w *wire) Write(b []byte) (int, error) {
	if w.writeErr != nil {
		return 0, w.writeErr
	}
	return w.out.Write(b)
}

// unread returns the peer's bytes that were not read.
func (w *wire) unread() string {
	rest := make([]byte, w.peer.Len())
	w.peer.ReadAt(rest, w.peer.Size()-int64(w.peer.Len()))
	return string(rest)
}

// bothSpeeds runs a test with wires that deliver at once and byte by byte.
func bothSpeeds(t *testing.T, name string, test func(t *testing.T, open func(string) *wire)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { test(t, newWire) })
	t.Run(name+" byte by byte", func(t *testing.T) { test(t, slowWire) })
}
