package starttls

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// sha256_password of MySQL 5.6 to 9. A server whose connection has TLS accepts only the
// password itself, with a NUL at its end. A client without TLS of its own asks for the
// server's RSA key instead, or sends the password encrypted with a key that it has; the
// server takes either for a wrong password.

const (
	mysqlSHA256     = "sha256_password"
	mysqlHintSHA256 = "sha256_password wants the password itself, which clients send only through TLS: " +
		"let the user have caching_sha2_password, and the client connect to a unix-socket listener of the ambassador, or let it have mysql_native_password"
)

// The capabilities of a client that say what its response has.
const (
	mysqlWithDB       = 0x00000008
	mysqlSecure       = 0x00008000 // the authentication data has a length of one byte
	mysqlPluginAuth   = 0x00080000 // the name of the plugin is behind it
	mysqlLenEncodedAD = 0x00200000 // its length is an integer of one byte, or of three
)

// mysqlAsksSHA256 reports whether a server's packet switches to sha256_password.
func mysqlAsksSHA256(body []byte) bool {
	return bytes.HasPrefix(body, []byte("\xfe"+mysqlSHA256+"\x00"))
}

// mysqlIsPassword reports whether the data of sha256_password is the password itself, or
// empty.
func mysqlIsPassword(data []byte) bool { return len(data) == 0 || data[len(data)-1] == 0 }

// triedSHA256 reports whether the client's response has sha256_password's data for a
// connection without TLS.
func (d *mysqlDialogue) triedSHA256(response []byte) bool {
	plugin, data := mysqlAuthData(response)
	return plugin == mysqlSHA256 && !mysqlIsPassword(data)
}

// explainSHA256 is the error for a server's ERR after such data.
func explainSHA256(answer []byte) *GreetingError {
	return &GreetingError{Protocol: mysqlName, Detail: fmt.Sprintf("a login through plain TCP: %s (the server said %s)", mysqlHintSHA256, mysqlErrorText(answer))}
}

// mysqlAuthData returns the plugin and its data in a client's response: capabilities,
// largest packet, character set and 23 reserved bytes; the user with a NUL; the data with
// its length; if there is one, the database with a NUL; the plugin with a NUL. Both are
// empty if the response has none.
func mysqlAuthData(response []byte) (plugin string, data []byte) {
	if len(response) < 4+mysqlHead {
		return "", nil
	}
	flags := binary.LittleEndian.Uint32(response[4:])
	_, rest, _ := bytes.Cut(response[4+mysqlHead:], []byte{0})
	if flags&mysqlPluginAuth == 0 || flags&(mysqlSecure|mysqlLenEncodedAD) == 0 || len(rest) == 0 {
		return "", nil
	}
	n, head := int(rest[0]), 1
	if flags&mysqlLenEncodedAD != 0 && rest[0] == 0xfc && len(rest) >= 3 {
		n, head = int(binary.LittleEndian.Uint16(rest[1:])), 3
	}
	if len(rest) < head+n {
		return "", nil
	}
	data, rest = rest[head:head+n], rest[head+n:]
	if flags&mysqlWithDB != 0 {
		_, rest, _ = bytes.Cut(rest, []byte{0})
	}
	name, _, _ := bytes.Cut(rest, []byte{0})
	return string(name), data
}
