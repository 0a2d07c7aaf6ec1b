package starttls

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// The capabilities of client and server that the dialogue uses.
const (
	mysqlProtocol41 = 0x0200
	mysqlSSL        = 0x0800
)

// First bytes of a server's packet before and during authentication. All others are
// data of an authentication plugin.
const (
	mysqlOK       = 0x00
	mysqlMoreData = 0x01
	mysqlGreeting = 0x0a
	mysqlERR      = 0xff
)

// Bounds.
const (
	// mysqlGreetingMax: MariaDB's have about 100 bytes, most of it the version.
	mysqlGreetingMax = 4 << 10
	// mysqlPacketMax bounds a packet of authentication. The largest is the client's
	// first: its connection attributes have at most 64 KiB.
	mysqlPacketMax = 96 << 10
	// mysqlPacketsMax bounds the packets of authentication: PAM may ask a few
	// questions, one for each factor.
	mysqlPacketsMax = 64
	mysqlReasonMax  = 480 // a client keeps 512 bytes of an error
)

const (
	mysqlName = "mysql"
	// mysqlHead is the length of the part that an SSLRequest shares with the client's
	// response: capabilities, largest packet, character set and 23 reserved bytes.
	mysqlHead = 32

	mysqlHintTLS  = "a client that insists on TLS ends so: set --skip-ssl (MariaDB) or --ssl-mode=PREFERRED (MySQL) in it, the ambassador does the TLS"
	mysqlHintFull = "caching_sha2_password wants the password itself now, which clients send only through TLS or a unix socket: " +
		"let the client connect to a unix-socket listener of the ambassador"
)

func mysql() Protocol {
	return Protocol{Name: mysqlName, NeedsClient: true, CountsProbes: true, ResetsAtEnd: true, LogsIn: true, Upgrade: mysqlUpgrade, Refuse: mysqlRefuse}
}

// mysqlDialogue is the state of one connection. All packets of both sides share
// one sequence number; our numbers towards the server are one ahead after the
// SSLRequest.
type mysqlDialogue struct {
	Dialogue // returned to the caller
	down, up leg
	greeting []byte // for the client
	response []byte // the client's first packet
	next     byte   // the number of the next packet, as the client counts
}

// mysqlUpgrade reads the greeting, without which neither side can continue.
func mysqlUpgrade(upstream io.ReadWriter) (*Dialogue, error) {
	up := leg{side: Upstream, rw: upstream, ifClosed: hintGreetingClosed, ifSilent: hintGreetingSilent}
	greeting, err := mysqlReadGreeting(&up)
	if err != nil {
		return nil, err
	}
	if err := mysqlStripTLS(greeting); err != nil {
		return nil, err
	}
	d := &mysqlDialogue{greeting: greeting}
	d.Dialogue = Dialogue{Begin: d.begin, BeginProbe: mysqlBeginProbe, LogIn: d.logIn, Finish: d.finish, Refuse: d.refuse}
	return &d.Dialogue, nil
}

func mysqlReadGreeting(up *leg) ([]byte, error) {
	first, err := up.head(identifyBytes) // a header and the byte with the packet's kind
	if err != nil {
		return nil, err
	}
	size := mysqlSize(first)
	if first[3] != 0 || size == 0 || size > mysqlGreetingMax || first[4] != mysqlGreeting && first[4] != mysqlERR {
		return nil, unexpected(mysqlName, "greeted", first)
	}
	packet := append(first, make([]byte, size-1)...)
	if err := up.readRest(packet[len(first):]); err != nil {
		return nil, err
	}
	if packet[4] == mysqlERR {
		return nil, &RefusedError{Protocol: mysqlName, Got: got(packet), Reply: packet, Busy: mysqlBusy(packet),
			What: "the server refused the connection: " + mysqlErrorText(packet)}
	}
	return packet, nil
}

// mysqlBusy reports whether an ERR packet is about a limit that other clients
// have reached: ER_CON_COUNT_ERROR, ER_TOO_MANY_USER_CONNECTIONS,
// ER_USER_LIMIT_REACHED.
func mysqlBusy(packet []byte) bool {
	if len(packet) < 7 {
		return false
	}
	switch binary.LittleEndian.Uint16(packet[5:]) {
	case 1040, 1203, 1226:
		return true
	}
	return false
}

// mysqlErrorText returns the number and text of an ERR packet.
func mysqlErrorText(packet []byte) string {
	if len(packet) < 7 {
		return "an error without a number"
	}
	return fmt.Sprintf("%d %.200q", binary.LittleEndian.Uint16(packet[5:]), packet[7:])
}

// mysqlStripTLS removes the offer of TLS from a greeting: protocol version,
// server version with a NUL, connection, 8 bytes of challenge, a NUL,
// capabilities.
func mysqlStripTLS(greeting []byte) error {
	version := bytes.IndexByte(greeting[5:], 0)
	at := 5 + version + 1 + 4 + 8 + 1
	if version < 0 || len(greeting) < at+2 {
		return &RefusedError{Protocol: mysqlName, Got: got(greeting), What: "the server sent a greeting that has no capabilities",
			Advice: "check that the endpoint is MySQL or MariaDB"}
	}
	flags := binary.LittleEndian.Uint16(greeting[at:])
	if flags&mysqlSSL == 0 || flags&mysqlProtocol41 == 0 {
		return &RefusedError{Protocol: mysqlName, Got: got(greeting), What: "the server offers no TLS",
			Advice: "let it have a certificate (ssl_cert, ssl_key, ssl_ca in its configuration), or remove tls and starttls (forward: --plain)"}
	}
	binary.LittleEndian.PutUint16(greeting[at:], flags&^mysqlSSL)
	return nil
}

// begin sends the greeting to the client, reads its response, and sends the
// SSLRequest.
func (d *mysqlDialogue) begin(downstream, upstream io.ReadWriter) (Result, error) {
	d.down = leg{side: Downstream, rw: downstream, ifClosed: mysqlHintTLS}
	d.up = leg{side: Upstream, rw: upstream}
	err := d.down.forward(d.greeting)
	if err == nil {
		d.next = 1
		err = d.clientResponse()
	}
	if err == nil {
		request := append([]byte{mysqlHead, 0, 0, 1}, d.response[4:4+mysqlHead]...)
		request[5] |= mysqlSSL >> 8
		err = d.up.send(request)
	}
	return Result{Down: d.down.forwarded}, err
}

// clientResponse reads the client's first packet.
func (d *mysqlDialogue) clientResponse() (err error) {
	if d.response, err = d.clientPacket(); err != nil {
		return err
	}
	if len(d.response) < 4+mysqlHead {
		return mysqlUnexpected(d.response)
	}
	flags := binary.LittleEndian.Uint16(d.response[4:])
	switch {
	case flags&mysqlProtocol41 == 0:
		return &GreetingError{Protocol: mysqlName, Detail: "a response of a protocol before 4.1, which has no TLS: update the client"}
	case flags&mysqlSSL != 0:
		return &GreetingError{Protocol: mysqlName, Detail: "a request for TLS, which it was not offered; " + mysqlHintTLS}
	}
	return nil
}

func mysqlUnexpected(first []byte) *GreetingError {
	return &GreetingError{Protocol: mysqlName, Detail: fmt.Sprintf("%q, which is no response to a MySQL greeting", got(first))}
}

// finish relays the authentication up to the server's verdict: packets of both
// sides in turn, renumbered. Every later command begins at 0 again.
func (d *mysqlDialogue) finish(downstream, upstream io.ReadWriter) (Result, error) {
	d.down = leg{side: Downstream, rw: downstream, answered: true}
	d.up = leg{side: Upstream, rw: upstream, ifClosed: "the server closed instead of answering the login: its log has the cause"}
	err := d.authenticate()
	return Result{Answered: d.up.answered, Up: d.up.forwarded, Down: d.down.forwarded}, err
}

func (d *mysqlDialogue) authenticate() error {
	response := d.response
	response[5] |= mysqlSSL >> 8
	response[3]++
	d.response = nil
	tried := d.triedSHA256(response)
	if err := d.up.forward(response); err != nil {
		return err
	}
	for range mysqlPacketsMax {
		answer, err := d.serverPacket()
		if err == nil {
			err = d.full(answer[4:])
		}
		if err != nil {
			return err
		}
		if tried && len(answer) > 4 && answer[4] == mysqlERR {
			d.next--
			return explainSHA256(answer)
		}
		tried = false // the server has asked for something else
		if err := d.down.forward(answer); err != nil {
			return err
		}
		switch body := answer[4:]; {
		case len(body) > 0 && (body[0] == mysqlOK || body[0] == mysqlERR):
			return nil
		case bytes.Equal(body, []byte{mysqlMoreData, 3}):
			// caching_sha2_password found the login in its cache; OK follows.
		default:
			if err := d.reply(body); err != nil {
				return err
			}
		}
	}
	return &RefusedError{Protocol: mysqlName, What: fmt.Sprintf("the server sent %d packets and no verdict on the login", mysqlPacketsMax)}
}

// mysqlFull is the request of caching_sha2_password for the password itself. A
// client whose own connection is not secure does not send it. It gives up, or
// asks for the server's RSA key first; the server, whose connection has TLS,
// would take that request for a wrong password.
const mysqlFull = "\x01\x04" // AuthMoreData, perform_full_authentication

// full refuses that request if the client would. The refusal takes the request's
// sequence number. Sending the request first would be worse: many clients then
// hide our message behind an error of their own.
func (d *mysqlDialogue) full(question []byte) error {
	if d.Confidential || string(question) != mysqlFull {
		return nil
	}
	d.next--
	return &GreetingError{Protocol: mysqlName, Detail: "a login through plain TCP: " + mysqlHintFull}
}

// reply passes on the client's answer to the plugin data or the auth switch in
// question.
func (d *mysqlDialogue) reply(question []byte) error {
	full := string(question) == mysqlFull
	d.down.ifClosed = ""
	switch {
	case full:
		d.down.ifClosed = mysqlHintFull
	case mysqlAsksSHA256(question):
		d.down.ifClosed = mysqlHintSHA256
	}
	packet, err := d.clientPacket()
	if err != nil {
		return err
	}
	if full && bytes.Equal(packet[4:], []byte{2}) {
		return &GreetingError{Protocol: mysqlName, Detail: "a request for the server's RSA key: " + mysqlHintFull}
	}
	if mysqlAsksSHA256(question) && !mysqlIsPassword(packet[4:]) {
		return &GreetingError{Protocol: mysqlName, Detail: "a login through plain TCP: " + mysqlHintSHA256}
	}
	packet[3]++
	return d.up.forward(packet)
}

// clientPacket reads one packet of the client, which must have the next number.
func (d *mysqlDialogue) clientPacket() ([]byte, error) {
	head, err := d.down.head(4)
	if err != nil {
		return nil, err
	}
	if head[3] != d.next || mysqlSize(head) > mysqlPacketMax {
		return nil, mysqlUnexpected(head)
	}
	d.next++
	return d.down.mysqlRest(head)
}

// serverPacket reads one packet of the server and gives it the number that the
// client expects.
func (d *mysqlDialogue) serverPacket() ([]byte, error) {
	head, err := d.up.head(4)
	if err != nil {
		return nil, err
	}
	if head[3] != d.next+1 || mysqlSize(head) > mysqlPacketMax {
		return nil, &RefusedError{Protocol: mysqlName, Got: got(head),
			What: fmt.Sprintf("the server answered the login with packet %d of %d bytes, where %d is due", head[3], mysqlSize(head), d.next+1)}
	}
	head[3] = d.next
	d.next++
	return d.up.mysqlRest(head)
}

// mysqlSize returns the length in a packet's header, which excludes the header.
func mysqlSize(head []byte) int { return int(head[0]) | int(head[1])<<8 | int(head[2])<<16 }

// mysqlRest reads the body that follows a packet's header, and returns both.
func (l *leg) mysqlRest(head []byte) ([]byte, error) {
	packet := make([]byte, 4+mysqlSize(head))
	copy(packet, head)
	return packet, l.readRest(packet[4:])
}

// mysqlBeginProbe asks for TLS with our own capabilities.
func mysqlBeginProbe(upstream io.ReadWriter, _ string) error {
	up := leg{side: Upstream, rw: upstream}
	return up.send(mysqlFrame(1, mysqlOwnHead()))
}

// refuse returns an ERR packet, with the SQLSTATE that a client of protocol 4.1
// expects after it has answered the greeting.
func (d *mysqlDialogue) refuse(why error) []byte {
	return mysqlError(d.next, "#08S01", why)
}

// mysqlRefuse sends an ERR packet in place of the greeting.
func mysqlRefuse(downstream io.ReadWriter, why error) error {
	down := leg{side: Downstream, rw: downstream}
	return down.send(replyOr(why, mysqlError(0, "", why)))
}

// mysqlError returns an ERR packet with the number 1043, ER_HANDSHAKE_ERROR.
func mysqlError(sequence byte, state string, why error) []byte {
	body := "\xff\x13\x04" + state + reason(why, mysqlReasonMax)
	return append([]byte{byte(len(body)), byte(len(body) >> 8), 0, sequence}, body...)
}
