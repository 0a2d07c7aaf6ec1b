package tlsrecord

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
)

// The alerts that we send. Their texts are those of crypto/tls.
const (
	alertCloseNotify       tls.AlertError = 0
	alertUnexpectedMessage tls.AlertError = 10
	alertBadRecordMAC      tls.AlertError = 20
	alertRecordOverflow    tls.AlertError = 22
	alertDecodeError       tls.AlertError = 50
	alertProtocolVersion   tls.AlertError = 70
	alertInternalError     tls.AlertError = 80
	alertUserCanceled      tls.AlertError = 90
)

const (
	// maxMessage bounds a message after the handshake, as crypto/tls does.
	maxMessage = 1 << 16
	// maxUseless bounds consecutive records and messages without application data, as
	// crypto/tls does.
	maxUseless = 16
)

// receiver is the receiving direction of a connection. Shadow and Conn handle records
// with it in the same way, which is that of crypto/tls.
type receiver struct {
	keys
	client  bool   // we are the client
	ended   bool   // the peer's close_notify was received
	useless byte   // records and messages since the last application data
	message []byte // the beginning of a message that continues in the next record
	owed    int    // KeyUpdates of the peer that request one of ours
}

// violation is an error of the peer with the alert that tells it.
type violation struct {
	alert tls.AlertError
	err   error // ours; nil: the alert, as a local error
}

func (v *violation) Error() string {
	if v.err != nil {
		return v.err.Error()
	}
	return v.alert.Error()
}

// errUnexpected is a record or a message at the wrong time.
var errUnexpected = &violation{alertUnexpectedMessage, nil}

// record handles a whole record, which it decrypts in place, and returns the application
// data in it. Renewed says that p is out of date. The error is a *violation, an alert of
// the peer as an error of crypto/tls, or that of a cipher.
func (r *receiver) record(s *suite, p *protection, record []byte) (data []byte, renewed bool, err error) {
	typ, content := record[0], record[headerSize:]
	if typ != typeChangeCipherSpec { // which is not protected (RFC 8446, 5)
		typ, content, err = r.open(p, record)
	}
	if alert, ok := err.(tls.AlertError); ok {
		return nil, false, &violation{alert, nil}
	}
	switch {
	case err != nil:
		return nil, false, err
	case len(content) > maxPlaintext:
		return nil, false, &violation{alertRecordOverflow, nil}
	case typ != typeHandshake && len(r.message) > 0:
		return nil, false, errUnexpected
	}
	switch typ {
	case typeChangeCipherSpec:
		return nil, false, r.changeCipherSpec(content)
	case typeApplicationData:
		if len(content) == 0 {
			return nil, false, r.ignore("tls: too many ignored records")
		}
		r.useless = 0
		return content, false, nil
	case typeAlert:
		return nil, false, r.alert(content)
	case typeHandshake:
		if len(content) == 0 {
			return nil, false, errUnexpected
		}
		r.message = append(r.message, content...)
		renewed, err = r.messages(s)
		return nil, renewed, err
	}
	return nil, false, errUnexpected
}

// changeCipherSpec ignores a record that has a meaning only for middleboxes. Like crypto/tls
// it also ignores one that is protected, which RFC 8446, 5, does not allow.
func (r *receiver) changeCipherSpec(content []byte) error {
	if len(content) != 1 || content[0] != 1 {
		return &violation{alertDecodeError, nil}
	}
	return r.ignore("tls: too many ignored records")
}

// ignore counts a record or a message without application data.
func (r *receiver) ignore(many string) error {
	if r.useless++; r.useless > maxUseless {
		return &violation{alertUnexpectedMessage, errors.New(many)}
	}
	return nil
}

// alert handles an alert of the peer.
func (r *receiver) alert(content []byte) error {
	if len(content) != 2 {
		return errUnexpected
	}
	switch alert := tls.AlertError(content[1]); alert {
	case alertCloseNotify:
		r.ended = true
		return nil
	case alertUserCanceled:
		return r.ignore("tls: too many ignored records")
	default:
		return &net.OpError{Op: "remote error", Err: alert}
	}
}

// messages handles the whole messages in r.message: tickets are ignored, and KeyUpdates
// followed. Nothing else is allowed after a handshake.
func (r *receiver) messages(s *suite) (renewed bool, err error) {
	for {
		m, err := r.next()
		if m == nil || err != nil {
			return renewed, err
		}
		if err := r.ignore("tls: too many non-advancing records"); err != nil {
			return renewed, err
		}
		switch {
		case m[0] == messageNewSessionTicket && r.client:
		case m[0] == messageNewSessionTicket:
			return renewed, &violation{alertUnexpectedMessage, errors.New("tls: received new session ticket from a client")}
		case m[0] == messageKeyUpdate:
			if err := r.keyUpdate(s, m); err != nil {
				return renewed, err
			}
			renewed = true
		default:
			return renewed, errUnexpected
		}
	}
}

// next removes the first message, with its header of four bytes. It returns nil if the
// message is not complete.
func (r *receiver) next() ([]byte, error) {
	if len(r.message) < 4 {
		return nil, nil
	}
	n := int(r.message[1])<<16 | int(r.message[2])<<8 | int(r.message[3])
	if n > maxMessage {
		return nil, &violation{alertInternalError, fmt.Errorf("tls: handshake message of length %d bytes exceeds maximum of %d bytes", n, maxMessage)}
	}
	if len(r.message) < 4+n {
		return nil, nil
	}
	m := r.message[:4+n]
	if r.message = r.message[4+n:]; len(r.message) == 0 {
		r.message = nil
	}
	return m, nil
}

// keyUpdate follows a KeyUpdate (RFC 8446, 4.6.3), which no bytes of a further message
// may follow in its record: they would be protected with the old keys.
func (r *receiver) keyUpdate(s *suite, m []byte) error {
	switch {
	case len(m) != 5 || m[4] > 1:
		return &violation{alertDecodeError, nil}
	case len(r.message) > 0:
		return &violation{alertUnexpectedMessage, errors.New("tls: handshake buffer not empty before setting read traffic secret")}
	}
	r.owed += int(m[4])
	return r.update(s)
}
