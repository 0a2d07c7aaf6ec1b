package carry

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/l4/unixsocket"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// Version is the version of the form. It changes whenever a program of the version
// before would misunderstand the state, or lose a part of it.
const Version = 3

// Server is the state of an l4.Server.
type Server struct {
	Prefix string `json:"prefix"` // of session ids
	Seq    uint64 `json:"seq"`    // of the last session

	Sessions []Session `json:"-"` // in packs
	// Parked are sessions whose client has sent nothing yet.
	Parked []Parked `json:"parked,omitempty"`
	// Ended are the records of sessions that end with the program, because they cannot be
	// carried.
	Ended []outcome.Record `json:"ended,omitempty"`
	// Stopped is how many sessions ended before, because they were not established in time
	// or the relay could not stop them where they were.
	Stopped int `json:"stopped,omitempty"`
	// Recent are the records of sessions that ended before, the newest first.
	Recent    []outcome.Record  `json:"recent,omitempty"`
	Traffic   []Traffic         `json:"traffic,omitempty"`
	Upstreams []upstream.Memory `json:"upstreams,omitempty"`
	Listeners []Listener        `json:"listeners,omitempty"`
}

// Listener returns the listening socket of a place; nil if there is none, or s is nil.
func (s *Server) Listener(key string) *Listener {
	if s == nil {
		return nil
	}
	for i := range s.Listeners {
		if s.Listeners[i].Key == key {
			return &s.Listeners[i]
		}
	}
	return nil
}

// Upstream returns what was known of an upstream; nil if that is nothing, or s is nil.
func (s *Server) Upstream(name string) *upstream.Memory {
	if s == nil {
		return nil
	}
	for i := range s.Upstreams {
		if s.Upstreams[i].Name == name {
			return &s.Upstreams[i]
		}
	}
	return nil
}

// Session is a relayed session.
type Session struct {
	Seq    uint64               `json:"seq"`
	Record outcome.Record       `json:"record"`          // without the bytes of the relay
	Trace  *Trace               `json:"trace,omitempty"` // the rest of the record's Trace; nil: it has none
	Source *policy.Source       `json:"source,omitempty"`
	Conn   upstream.CarriedConn `json:"conn"`
	Flow   relay.Carried        `json:"flow"`
	// Blobs are the lengths of the bytes of the flow's sides: held, and the state of TLS.
	Blobs [4]int `json:"blobs,omitzero"`
}

// Parked is a session whose client has sent nothing yet, and has to speak first.
type Parked struct {
	Seq      uint64         `json:"seq"`
	Record   outcome.Record `json:"record"`
	Listener string         `json:"listener"` // the key of its place
	Remote   netip.AddrPort `json:"remote"`
	FD       int            `json:"fd"`
}

// Trace is what the record of a session does not show of its trace.
type Trace struct {
	Parent  outcome.SpanID  `json:"parent"`
	Sampled bool            `json:"sampled,omitempty"`
	Phases  []outcome.Phase `json:"phases,omitempty"`
	Omitted int             `json:"omitted,omitempty"`
}

// TraceOf returns the rest of a record's Trace; nil if it has none.
func TraceOf(t *outcome.Trace) *Trace {
	if t == nil {
		return nil
	}
	return &Trace{t.Parent, t.Sampled, t.Phases, t.Omitted}
}

// Restore completes the record's Trace.
func (t *Trace) Restore(to *outcome.Trace) {
	if t != nil && to != nil {
		to.Parent, to.Sampled, to.Phases, to.Omitted = t.Parent, t.Sampled, t.Phases, t.Omitted
	}
}

// Traffic is what ended sessions of a listener have moved for an upstream.
type Traffic struct {
	Listener string `json:"listener"`
	Upstream string `json:"upstream"`
	Up       int64  `json:"up"`
	Down     int64  `json:"down"`
}

// Listener is a bound socket.
type Listener struct {
	Key  string `json:"key"` // of its place
	Addr string `json:"addr"`
	FD   int    `json:"fd"`
	// File is the file of a unix socket that we made; nil: there is none.
	File *unixsocket.File `json:"file,omitempty"`
}

// Handover is everything that a program gives to its successor.
type Handover struct {
	From string `json:"from"` // the version of the program
	// Old is a descriptor of the program's executable, to go back to.
	Old    int    `json:"old"`
	Server Server `json:"server"`
	// Config is the configuration in use, as it was read: the program goes on with it if it
	// comes back. Nil if it was made of flags.
	Config []byte `json:"config,omitempty"`
	// Process is what the rest of the process adds.
	Process json.RawMessage `json:"process,omitempty"`
}

// Descriptors returns the descriptors of the listeners and sessions.
func (s *Server) Descriptors() (fds []int) {
	for i := range s.Listeners {
		fds = append(fds, s.Listeners[i].FD)
	}
	for i := range s.Parked {
		fds = append(fds, s.Parked[i].FD)
	}
	for i := range s.Sessions {
		fds = append(fds, s.Sessions[i].Flow.Descriptors()...)
	}
	return fds
}

// Renumber gives every descriptor the number that to returns for it; -1: it is gone.
func (s *Server) Renumber(to func(int) int) {
	for i := range s.Listeners {
		s.Listeners[i].FD = to(s.Listeners[i].FD)
	}
	for i := range s.Parked {
		s.Parked[i].FD = to(s.Parked[i].FD)
	}
	for i := range s.Sessions {
		s.Sessions[i].Flow.Renumber(to)
	}
}

// magic begins every state.
const magic = "ambassador carry"

// header is the fixed beginning of a state. Only the lengths follow the version, so
// that every version can tell which one it reads.
//
// The state in JSON follows, then the sessions in packs, then their bytes.
type header struct {
	Magic   [len(magic)]byte
	Version uint32
	Old     int32 // a descriptor of the old executable, which every version can read
	// The lengths of the parts.
	Meta, Packs, Blobs uint64
}

// headerSize is the size of a header in bytes.
var headerSize = binary.Size(header{})

// VersionError means that the state has another version than Version.
type VersionError struct{ Got uint32 }

func (e *VersionError) Error() string {
	return fmt.Sprintf("the state of the sessions has version %d, and this program reads version %d", e.Got, Version)
}

// Write writes a state.
func Write(w io.Writer, h *Handover) error {
	for i := range h.Server.Sessions {
		s := &h.Server.Sessions[i]
		s.Blobs = [4]int{}
		for k, b := range s.blobs() {
			s.Blobs[k] = len(*b)
		}
	}
	packs, err := pack(h.Server.Sessions)
	if err != nil {
		return err
	}
	meta, err := json.Marshal(h)
	if err != nil {
		return err
	}
	head := header{Version: Version, Old: int32(h.Old), Meta: uint64(len(meta))}
	copy(head.Magic[:], magic)
	for _, text := range packs {
		head.Packs += uint64(len(text))
	}
	for i := range h.Server.Sessions {
		for _, n := range h.Server.Sessions[i].Blobs {
			head.Blobs += uint64(n)
		}
	}
	if err := binary.Write(w, binary.BigEndian, &head); err != nil {
		return err
	}
	for _, text := range append([][]byte{meta}, packs...) {
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
	for i := range h.Server.Sessions {
		for _, b := range h.Server.Sessions[i].blobs() {
			if _, err := w.Write(*b); err != nil {
				return err
			}
		}
	}
	return nil
}

const (
	// packSize is how many sessions a pack has. All processors encode packs, and decode
	// them, because no byte of any session moves meanwhile.
	packSize = 256
	// lengthSize is the size of the length before a pack, in bytes.
	lengthSize = 8
)

// pack encodes sessions.
func pack(sessions []Session) (packs [][]byte, err error) {
	parts := slices.Collect(slices.Chunk(sessions, packSize))
	packs = make([][]byte, len(parts))
	return packs, inParallel(len(parts), func(i int) error {
		text, err := json.Marshal(parts[i])
		packs[i] = append(binary.BigEndian.AppendUint64(nil, uint64(len(text))), text...)
		return err
	})
}

// unpack is the reverse of pack.
func unpack(b []byte) ([]Session, error) {
	var texts [][]byte
	for len(b) > 0 {
		if len(b) < lengthSize || binary.BigEndian.Uint64(b) > uint64(len(b)-lengthSize) {
			return nil, errors.New("a pack is cut off")
		}
		end := lengthSize + int(binary.BigEndian.Uint64(b))
		texts, b = append(texts, b[lengthSize:end]), b[end:]
	}
	parts := make([][]Session, len(texts))
	err := inParallel(len(texts), func(i int) error { return json.Unmarshal(texts[i], &parts[i]) })
	return slices.Concat(parts...), err
}

// inParallel calls do for each number below n, and returns one of its errors.
func inParallel(n int, do func(i int) error) error {
	var calls sync.WaitGroup
	var next atomic.Int64
	errs := make([]error, n)
	for range min(n, runtime.GOMAXPROCS(0)) {
		calls.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				errs[i] = do(i)
			}
		})
	}
	calls.Wait()
	return cmp.Or(errs...)
}

// blobs returns the bytes of a session that are written after the rest of the state.
func (s *Session) blobs() [4]*[]byte {
	a, b := &s.Flow.Sides[0], &s.Flow.Sides[1]
	return [4]*[]byte{&a.Held, &b.Held, &a.TLS, &b.TLS}
}

// Read reads a state that Write has written. With a *VersionError the result has Old
// alone. The bytes of sessions refer to b.
func Read(b []byte) (*Handover, error) {
	var head header
	if _, err := binary.Decode(b, binary.BigEndian, &head); err != nil || string(head.Magic[:]) != magic {
		return nil, errors.New("this is no state of sessions")
	}
	if head.Version != Version {
		return &Handover{Old: int(head.Old)}, &VersionError{head.Version}
	}
	b = b[headerSize:]
	if size := uint64(len(b)); head.Meta > size || head.Packs > size-head.Meta || head.Blobs != size-head.Meta-head.Packs {
		return nil, errors.New("the state of the sessions is cut off, or longer than it says")
	}
	h := &Handover{}
	if err := json.Unmarshal(b[:head.Meta], h); err != nil {
		return nil, fmt.Errorf("the state of the sessions: %w", err)
	}
	if h.Old != int(head.Old) {
		return nil, errors.New("the state of the sessions contradicts its beginning")
	}
	var err error
	if h.Server.Sessions, err = unpack(b[head.Meta : head.Meta+head.Packs]); err != nil {
		return nil, fmt.Errorf("the state of the sessions: %w", err)
	}
	if err := h.Server.take(b[head.Meta+head.Packs:]); err != nil {
		return nil, fmt.Errorf("the state of the sessions: %w", err)
	}
	return h, nil
}

// take gives each session its bytes, and checks all of them.
func (s *Server) take(blobs []byte) error {
	seen := map[int]bool{}
	for _, fd := range s.Descriptors() {
		if fd <= 2 || seen[fd] {
			return fmt.Errorf("descriptor %d is standard input, output or error, or appears twice", fd)
		}
		seen[fd] = true
	}
	for i := range s.Sessions {
		sess := &s.Sessions[i]
		for k, b := range sess.blobs() {
			n := sess.Blobs[k]
			if n < 0 || n > len(blobs) {
				return fmt.Errorf("session %d: %d bytes are missing", sess.Seq, n)
			}
			if n > 0 {
				*b, blobs = blobs[:n:n], blobs[n:]
			}
		}
		if err := sess.Flow.Valid(); err != nil {
			return fmt.Errorf("session %d: %w", sess.Seq, err)
		}
		if sess.Seq > s.Seq {
			return fmt.Errorf("session %d: the last one was %d", sess.Seq, s.Seq)
		}
	}
	for i := range s.Parked {
		if p := &s.Parked[i]; p.Seq > s.Seq {
			return fmt.Errorf("session %d: the last one was %d", p.Seq, s.Seq)
		}
	}
	if len(blobs) > 0 {
		return errors.New("there are bytes of no session")
	}
	return nil
}
