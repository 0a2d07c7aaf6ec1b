package limits

import (
	"io"
	"net"
)

// ReadCost is how many bytes a session holds for each byte of a request or a greeting:
// the byte, and what is parsed from it.
const ReadCost = 3

// Metered counts the bytes read from one side of a dialogue as held by a session.
type Metered struct {
	io.ReadWriter
	Hold func(bytes int64)
}

func (c *Metered) Read(b []byte) (int, error) {
	n, err := c.ReadWriter.Read(b)
	if n > 0 {
		c.Hold(int64(n) * ReadCost)
	}
	return n, err
}

// MeteredConn is Metered for a net.Conn.
type MeteredConn struct {
	net.Conn
	Hold func(bytes int64)
}

func (c *MeteredConn) Read(b []byte) (int, error) { return (&Metered{c.Conn, c.Hold}).Read(b) }
