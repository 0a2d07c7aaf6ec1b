package preface

import "encoding/hex"

// Traceparent is where in a trace a client's session belongs (W3C Trace Context, Level 1,
// section 3.2). The zero value is none.
type Traceparent struct {
	TraceID  [16]byte
	ParentID [8]byte // the client's span
	Sampled  bool    // the client's own spans are kept
}

// IsValid reports whether there is one.
func (p Traceparent) IsValid() bool { return p.TraceID != [16]byte{} && p.ParentID != [8]byte{} }

const (
	traceparentSize = 55   // bytes of version 00, and of the part that all versions share
	flagSampled     = 0x01 // the only flag of version 00
)

// ParseTraceparent reads VERSION-TRACEID-PARENTID-FLAGS in lowercase hex. An invalid text
// is none: by the standard it is ignored, and not an error. Of a later version it reads
// the part that all versions share.
func ParseTraceparent(text string) Traceparent {
	if len(text) < traceparentSize || text[2] != '-' || text[35] != '-' || text[52] != '-' {
		return Traceparent{}
	}
	var (
		p              Traceparent
		version, flags [1]byte
	)
	if !readHex(version[:], text[:2]) || !readHex(p.TraceID[:], text[3:35]) || !readHex(p.ParentID[:], text[36:52]) || !readHex(flags[:], text[53:55]) {
		return Traceparent{}
	}
	later := len(text) > traceparentSize
	if version[0] == 0xff || version[0] == 0 && later || later && text[traceparentSize] != '-' || !p.IsValid() {
		return Traceparent{}
	}
	p.Sampled = flags[0]&flagSampled != 0
	return p
}

// readHex decodes lowercase hex of exactly the size of to.
func readHex(to []byte, text string) bool {
	for _, c := range []byte(text) {
		if c >= 'A' && c <= 'F' {
			return false
		}
	}
	_, err := hex.Decode(to, []byte(text))
	return err == nil
}
