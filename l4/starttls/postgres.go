package starttls

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Request codes, which take the place of a startup message's protocol version.
const (
	pgSSLRequest    = 80877103 // 1234.5679
	pgGSSENCRequest = 80877104 // 1234.5680
	pgCancelRequest = 80877102 // 1234.5678
)

// Bounds. Lengths are those on the wire: they include themselves, not the type.
const (
	// pgStartupMax is the limit of PostgreSQL's server: 10000 bytes behind the length.
	pgStartupMax = 10004
	// A CancelRequest is length, code, process id and the secret key: always 4
	// bytes in protocol 3.0, up to 256 in 3.2.
	pgCancelMin = 12 + 4
	pgCancelMax = 12 + 256
	// pgMessageMax bounds a server's message before authentication. libpq accepts
	// 2000 bytes for R and 30000 for E.
	pgMessageMax = 64 << 10
	// pgRequestsMax: libpq requests once GSSAPI and once TLS.
	pgRequestsMax = 3
	// pgMessagesMax bounds the messages before the first R or E; a server sends one v
	// there, and a notice almost never.
	pgMessagesMax = 32
	// pgReasonMax bounds the text of our own ErrorResponse.
	pgReasonMax = 4096
)

const (
	pgName        = "postgres"
	pgPlus        = "SCRAM-SHA-256-PLUS"
	pgAuthSASL    = 10
	pgHintUpgrade = "the server closed instead of answering SSLRequest: it is no PostgreSQL server, refuses connections from here, or speaks TLS at once (then remove starttls)"
	pgHintStartup = "the server closed instead of answering the startup message: its log has the cause"
	pgHintTLS     = "the client insists on TLS: set sslmode=disable (or prefer) in it, the ambassador does the TLS"
	pgHintGSS     = "the client insists on GSSAPI encryption: set gssencmode=disable in it, the ambassador does TLS"
)

func postgres() Protocol {
	return Protocol{Name: pgName, Upgrade: pgUpgrade, Accept: pgAccept, Refuse: pgRefuse, with: pgWith}
}

// PostgresALPN is the protocol name in the TLS handshake that Options.Direct needs: a
// server ends a direct connection without it.
const PostgresALPN = "postgresql"

func pgWith(o Options) (Protocol, error) {
	if o.EHLOName != "" {
		return Protocol{}, errNoEHLOName
	}
	p := postgres()
	p.Upgrade = func(io.ReadWriter) (*Dialogue, error) { return pgUnderTLS(), nil }
	p.IfNoTLS = "PostgreSQL before 17, and poolers, end a TLS connection without SSLRequest so: remove starttls_options.direct"
	return p, nil
}

func pgUpgrade(upstream io.ReadWriter) (*Dialogue, error) {
	up := leg{side: Upstream, rw: upstream, ifClosed: pgHintUpgrade}
	request := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, pgSSLRequest)
	if err := up.send(request); err != nil {
		return nil, err
	}
	var answer [1]byte // exactly one: the next byte belongs to TLS
	if err := up.read(answer[:]); err != nil {
		return nil, err
	}
	if answer[0] == 'S' {
		return pgUnderTLS(), nil
	}
	return nil, pgDeclined(answer[0])
}

// pgUnderTLS is the part of the dialogue under TLS.
func pgUnderTLS() *Dialogue {
	d := &Dialogue{Refuse: pgError}
	d.Finish = func(downstream, upstream io.ReadWriter) (Result, error) {
		return pgFinish(downstream, upstream, d.Encrypted)
	}
	return d
}

// pgAccept answers S. A client may also begin with TLS at once (libpq's
// sslnegotiation=direct). A client without TLS is told to use it.
func pgAccept(downstream io.ReadWriter) (Accepted, error) {
	d := pgDialogue{down: leg{side: Downstream, rw: downstream}}
	for {
		head := make([]byte, 4, 8)
		if err := d.down.read(head); err != nil {
			return Accepted{}, err
		}
		if d.requests == 0 && bytes.HasPrefix(head, []byte("\x16\x03")) {
			return Accepted{Hello: head}, nil
		}
		packet, code, err := d.packetAfter(head)
		if err != nil {
			return Accepted{}, err
		}
		switch code {
		case pgSSLRequest:
			return Accepted{}, d.down.send([]byte{'S'})
		case pgCancelRequest:
			return Accepted{Cancel: packet}, nil
		case pgGSSENCRequest:
			if err := d.decline(code); err != nil {
				return Accepted{}, err
			}
		default:
			e := pgGreeting("a startup message without TLS, which this listener demands: set sslmode=verify-full (or require) in it")
			return Accepted{}, errors.Join(e, d.down.send(pgError(e)))
		}
	}
}

// pgRefuse waits for the startup message, because a client reads nothing before
// it has sent that. A CancelRequest has no answer.
func pgRefuse(downstream io.ReadWriter, why error) error {
	d := pgDialogue{down: leg{side: Downstream, rw: downstream}}
	_, cancel, err := d.startup()
	if err != nil {
		return err
	}
	if cancel != nil {
		return ErrNoAnswer
	}
	return d.down.send(pgError(why))
}

// pgDeclined describes an answer to SSLRequest other than S.
func pgDeclined(answer byte) *RefusedError {
	e := &RefusedError{Protocol: pgName, Got: []byte{answer}}
	switch answer {
	case 'N':
		e.What = "the server offers no TLS (answer N)"
		e.Advice = "set ssl = on in its postgresql.conf; a pooler has its own setting (PgBouncer: client_tls_sslmode); " +
			"PostgreSQL has no TLS on unix sockets; to do without TLS, remove tls and starttls (forward: --plain)"
	case 'E':
		e.What = "the server answered SSLRequest with an error (answer E)"
		e.Advice = "its log has the cause: no process left for the connection, or a server too old for TLS"
	default:
		what, advice := identifyByte(answer)
		e.What = fmt.Sprintf("the server answered SSLRequest with %q", answer)
		if what != "" {
			e.What += ", perhaps the beginning of " + what
		}
		e.Advice = advice
	}
	return e
}

// pgDialogue is the state of one client's part.
type pgDialogue struct {
	down, up leg
	requests int // SSLRequest and GSSENCRequest answered

	encrypted bool // the client's own connection has TLS
}

func pgFinish(downstream, upstream io.ReadWriter, encrypted bool) (Result, error) {
	d := pgDialogue{
		encrypted: encrypted,
		down:      leg{side: Downstream, rw: downstream},
		up:        leg{side: Upstream, rw: upstream, ifClosed: pgHintStartup},
	}
	cancel, err := d.run()
	return Result{Cancel: cancel, Answered: d.up.answered, Up: d.up.forwarded, Down: d.down.forwarded}, err
}

// run handles the client's requests, its startup message, and the server's
// messages up to the first that ends the dialogue.
func (d *pgDialogue) run() (cancel []byte, err error) {
	packet, cancel, err := d.startup()
	if err != nil || cancel != nil {
		return cancel, err
	}
	if err := d.up.forward(packet); err != nil {
		return nil, err
	}
	return nil, d.authentication()
}

// startup declines the client's requests for encryption up to its startup message
// or its CancelRequest, and returns one of the two.
func (d *pgDialogue) startup() (packet, cancel []byte, err error) {
	for {
		packet, code, err := d.clientPacket()
		if err != nil {
			return nil, nil, err
		}
		switch code {
		case pgCancelRequest:
			return nil, packet, nil
		case pgSSLRequest, pgGSSENCRequest:
			if err := d.decline(code); err != nil {
				return nil, nil, err
			}
		default:
			return packet, nil, nil
		}
	}
}

// clientPacket reads one whole packet of a client before its session: length,
// code, rest. Each is checked before the next is read.
func (d *pgDialogue) clientPacket() (packet []byte, code uint32, err error) {
	head := make([]byte, 4, 8)
	if err := d.down.read(head); err != nil {
		return nil, 0, err
	}
	return d.packetAfter(head)
}

// packetAfter is clientPacket after the length has been read.
func (d *pgDialogue) packetAfter(head []byte) (packet []byte, code uint32, err error) {
	size := binary.BigEndian.Uint32(head)
	if size < 8 || size > pgStartupMax {
		return nil, 0, pgGreeting(pgNoPacket(head))
	}
	head = append(head, 0, 0, 0, 0)
	if err := d.down.readRest(head[4:]); err != nil {
		return nil, 0, err
	}
	code = binary.BigEndian.Uint32(head[4:])
	if err := pgCheck(size, code); err != nil {
		return nil, 0, err
	}
	packet = make([]byte, size)
	copy(packet, head)
	if err := d.down.readRest(packet[8:]); err != nil {
		return nil, 0, err
	}
	return packet, code, nil
}

// pgCheck accepts the codes that the dialogue knows, in packets of their size.
func pgCheck(size, code uint32) error {
	major, minor := code>>16, code&0xffff
	switch {
	case code == pgSSLRequest && size != 8, code == pgGSSENCRequest && size != 8:
		return pgGreeting(fmt.Sprintf("an encryption request of %d bytes; it has 8", size))
	case code == pgSSLRequest, code == pgGSSENCRequest:
		return nil
	case code == pgCancelRequest && (size < pgCancelMin || size > pgCancelMax):
		return pgGreeting(fmt.Sprintf("a CancelRequest of %d bytes; it has %d to %d", size, pgCancelMin, pgCancelMax))
	case code == pgCancelRequest, major == 3:
		return nil
	case major == 1234:
		return pgGreeting(fmt.Sprintf("a request %d.%d that is not known here", major, minor))
	case major == 2 && minor == 0:
		return pgGreeting("a startup message of protocol 2.0, which PostgreSQL 14 and later refuse: update the client")
	}
	return pgGreeting(fmt.Sprintf("what would be a startup message of protocol %d.%d; PostgreSQL's is 3", major, minor))
}

func pgGreeting(detail string) *GreetingError {
	return &GreetingError{Protocol: pgName, Detail: detail}
}

// pgNoPacket describes the four bytes that a client sent in place of a packet's
// length.
func pgNoPacket(head []byte) string {
	for _, known := range []struct{ prefix, what string }{
		{"\x16\x03", "a TLS ClientHello: it wants TLS from us at once (sslnegotiation=direct); set sslmode=disable in it, the ambassador does the TLS"},
		{"GET ", "an HTTP request"}, {"POST", "an HTTP request"}, {"HEAD", "an HTTP request"}, {"PUT ", "an HTTP request"},
		{"DELE", "an HTTP request"}, {"OPTI", "an HTTP request"}, {"PATC", "an HTTP request"}, {"PRI ", "an HTTP/2 preface"},
		{"CONN", "an HTTP CONNECT request; this listener is no proxy"},
		{"\x05", "a SOCKS5 request; this listener is no proxy"},
		{"\x04\x01", "a SOCKS4 request; this listener is no proxy"},
		{"PROX", "a PROXY protocol header, which this listener does not expect"},
		{"\r\n\r\n", "a PROXY protocol header, which this listener does not expect"},
		{"SSH-", "an SSH greeting"},
		{"EHLO", "an SMTP command"}, {"HELO", "an SMTP command"},
	} {
		if bytes.HasPrefix(head, []byte(known.prefix)) {
			return known.what
		}
	}
	return fmt.Sprintf("%q, which begins no PostgreSQL startup message", head)
}

// decline refuses a request for encryption, which the client's connection does
// not have.
func (d *pgDialogue) decline(code uint32) error {
	if d.requests == pgRequestsMax {
		return pgGreeting(fmt.Sprintf("more than %d requests for encryption", pgRequestsMax))
	}
	d.requests++
	d.down.ifClosed = pgHintTLS
	if code == pgGSSENCRequest {
		d.down.ifClosed = pgHintGSS
	}
	return d.down.send([]byte{'N'})
}

// authentication passes on the server's messages up to the first R or E. The
// relay handles the rest.
func (d *pgDialogue) authentication() error {
	for range pgMessagesMax {
		msg, err := d.serverMessage()
		if err != nil {
			return err
		}
		whole := len(msg)
		if msg[0] == 'R' {
			if msg, err = pgStripPlus(msg); err != nil {
				return err
			}
		}
		if err := d.down.forward(msg); err != nil {
			return err
		}
		switch {
		case d.encrypted && len(msg) < whole:
			return d.passMechanism()
		case msg[0] == 'R' || msg[0] == 'E':
			return nil
		}
	}
	return &RefusedError{Protocol: pgName,
		What: fmt.Sprintf("the server sent %d messages without asking for authentication", pgMessagesMax)}
}

// passMechanism passes on the client's choice of a mechanism, if the login can
// succeed. A client with its own TLS, to which PLUS was not offered, may tell the
// server that it supports channel binding. The server, which did offer PLUS,
// would take that for a downgrade attack (RFC 5802, 6).
func (d *pgDialogue) passMechanism() error {
	head := make([]byte, 5)
	if err := d.down.read(head); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if head[0] != 'p' || size < 4 || size > pgMessageMax {
		return pgGreeting(fmt.Sprintf("a message %q of %d bytes where its choice of a SASL mechanism is due", head[0], size))
	}
	msg := append(head, make([]byte, size-4)...)
	if err := d.down.readRest(msg[5:]); err != nil {
		return err
	}
	_, response, _ := bytes.Cut(msg[5:], []byte{0}) // after the mechanism's name: a length, and the message
	if len(response) > 4 && response[4] == 'y' {
		return pgGreeting("SCRAM with the wish to bind it to its TLS, which ends here, while the server sees that of the ambassador: set channel_binding=disable in it")
	}
	return d.up.forward(msg)
}

// serverMessage reads one whole message of a type that the dialogue knows.
func (d *pgDialogue) serverMessage() ([]byte, error) {
	head := make([]byte, 5)
	if err := d.up.read(head[:1]); err != nil {
		return nil, err
	}
	if !bytes.Contains([]byte("REvN"), head[:1]) {
		return nil, pgUnexpected(head[:1], fmt.Sprintf("a message of type %q", head[0]))
	}
	if err := d.up.readRest(head[1:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	least := uint32(4)
	if head[0] == 'R' {
		least = 8 // the code
	}
	if size < least || size > pgMessageMax {
		return nil, pgUnexpected(head, fmt.Sprintf("a message %q of %d bytes", head[0], size))
	}
	msg := make([]byte, 1+size)
	copy(msg, head)
	if err := d.up.readRest(msg[5:]); err != nil {
		return nil, err
	}
	return msg, nil
}

func pgUnexpected(first []byte, what string) *RefusedError {
	return &RefusedError{Protocol: pgName, Got: got(first),
		What:   "the server answered the startup message with " + what,
		Advice: "that is not PostgreSQL's protocol 3: check the endpoint"}
}

// pgStripPlus removes SCRAM-SHA-256-PLUS from an AuthenticationSASL; it returns
// any other R unchanged. It refuses a malformed list, which could hide the
// mechanism.
func pgStripPlus(msg []byte) ([]byte, error) {
	const list = 1 + 4 + 4 // behind type, length and code
	if binary.BigEndian.Uint32(msg[5:]) != pgAuthSASL {
		return msg, nil
	}
	out, struck := append(make([]byte, 0, len(msg)), msg[:list]...), false
	rest := msg[list:]
	for {
		name, behind, ended := bytes.Cut(rest, []byte{0})
		if !ended || len(name) == 0 && len(behind) > 0 {
			return nil, pgUnexpected(msg, "a list of SASL mechanisms that is not well formed")
		}
		if len(name) == 0 {
			break
		}
		if string(name) == pgPlus {
			struck = true
		} else {
			out = append(append(out, name...), 0)
		}
		rest = behind
	}
	if !struck {
		return msg, nil
	}
	if len(out) == list {
		return nil, &RefusedError{Protocol: pgName, Got: got(msg),
			What:   "the server offers only " + pgPlus + ", which the client cannot do: it has no TLS",
			Advice: "let the server offer SCRAM-SHA-256 too, or authenticate by certificate (cert in pg_hba.conf)"}
	}
	out = append(out, 0)
	binary.BigEndian.PutUint32(out[1:], uint32(len(out)-1))
	return out, nil
}

// pgError returns an ErrorResponse: FATAL, SQLSTATE 08006 (connection_failure).
func pgError(why error) []byte {
	body := "SFATAL\x00VFATAL\x00C08006\x00M" + reason(why, pgReasonMax) + "\x00\x00"
	msg := binary.BigEndian.AppendUint32([]byte{'E'}, uint32(4+len(body)))
	return append(msg, body...)
}
