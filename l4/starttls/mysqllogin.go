package starttls

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"strings"
)

// The login of a health check. A MySQL server counts a connection that ends without
// a login as a failed client, so a health check has to log in and quit.

const (
	mysqlNative = "mysql_native_password"
	mysqlSHA2   = "caching_sha2_password"
	mysqlSwitch = 0xfe // AuthSwitchRequest
	mysqlQuit   = "\x01\x00\x00\x00\x01"
	// mysqlSaltLen is how much of a challenge the plugins use; a NUL follows it.
	mysqlSaltLen = 20
)

// logIn logs in under TLS, after the SSLRequest, and quits. It sends the password
// itself only to a server that asks for it under caching_sha2_password or
// sha256_password.
func (d *mysqlDialogue) logIn(upstream io.ReadWriter, user, password string) error {
	d.up = leg{side: Upstream, rw: upstream, ifClosed: "the server closed instead of answering the login: its log has the cause"}
	d.next = 2 // after the SSLRequest, as serverPacket counts: ours are one ahead
	plugin, salt := mysqlChallenge(d.greeting)
	proof, known := mysqlProof(plugin, password, salt)
	if !known { // the server's default plugin, which is not always the user's
		plugin = mysqlNative
		proof, _ = mysqlProof(plugin, password, salt)
	}
	login := append(mysqlOwnHead(), user...)
	login = append(append(login, 0, byte(len(proof))), proof...)
	if err := d.up.send(mysqlFrame(2, append(append(login, plugin...), 0))); err != nil {
		return err
	}
	for range mysqlPacketsMax {
		answer, err := d.serverPacket()
		if err != nil {
			return err
		}
		reply, done, err := mysqlAnswer(answer, password)
		if done && err == nil {
			return d.up.send([]byte(mysqlQuit))
		}
		if err != nil {
			return err
		}
		if reply == nil {
			continue
		}
		if err := d.up.send(mysqlFrame(d.next+1, reply)); err != nil {
			return err
		}
		d.next++
	}
	return &RefusedError{Protocol: mysqlName, What: fmt.Sprintf("the server sent %d packets and no verdict on the login", mysqlPacketsMax)}
}

// mysqlAnswer returns the answer to a packet of authentication; nil: no answer is
// due. Done: the login succeeded.
func mysqlAnswer(packet []byte, password string) (reply []byte, done bool, err error) {
	body := packet[4:]
	switch {
	case len(body) > 0 && body[0] == mysqlOK:
		return nil, true, nil
	case len(body) > 0 && body[0] == mysqlERR:
		return nil, false, &RefusedError{Protocol: mysqlName, Got: got(packet), Busy: mysqlBusy(packet), What: "the server refused the login of health.user: " + mysqlErrorText(packet)}
	case bytes.Equal(body, []byte{mysqlMoreData, 3}):
		return nil, false, nil
	case string(body) == mysqlFull:
		return append([]byte(password), 0), false, nil
	case len(body) > 0 && body[0] == mysqlSwitch:
		plugin, salt, _ := strings.Cut(string(body[1:]), "\x00")
		if plugin == mysqlSHA256 {
			return append([]byte(password), 0), false, nil
		}
		proof, known := mysqlProof(plugin, password, []byte(salt))
		if !known {
			return nil, false, &RefusedError{Protocol: mysqlName, What: fmt.Sprintf("the server wants health.user to log in by %.64q", plugin),
				Advice: "let that user have " + mysqlNative + " or " + mysqlSHA2}
		}
		return proof, false, nil
	}
	return nil, false, &RefusedError{Protocol: mysqlName, Got: got(packet), What: "the server answered the login with what is no part of it"}
}

// mysqlProof returns a plugin's proof of the password. Known reports whether the
// plugin is implemented. The proof of an empty password is empty.
func mysqlProof(plugin, password string, salt []byte) (proof []byte, known bool) {
	salt = salt[:min(len(salt), mysqlSaltLen)]
	if plugin != mysqlNative && plugin != mysqlSHA2 {
		return nil, false
	}
	if password == "" {
		return []byte{}, true
	}
	if plugin == mysqlSHA2 {
		once := sha256.Sum256([]byte(password))
		twice := sha256.Sum256(once[:])
		mask := sha256.Sum256(append(twice[:], salt...))
		return mysqlXOR(once[:], mask[:]), true
	}
	once := sha1.Sum([]byte(password))
	twice := sha1.Sum(once[:])
	mask := sha1.Sum(append(salt[:len(salt):len(salt)], twice[:]...))
	return mysqlXOR(once[:], mask[:]), true
}

func mysqlXOR(a, b []byte) []byte {
	subtle.XORBytes(a, a, b)
	return a
}

// mysqlChallenge returns the plugin and the salt of a greeting that mysqlStripTLS
// has accepted. After the capabilities follow a character set, the status, the
// upper capabilities, the challenge's length, 10 reserved bytes, the rest of the
// challenge and the plugin's name. A missing part is empty.
func mysqlChallenge(greeting []byte) (plugin string, salt []byte) {
	at := 5 + bytes.IndexByte(greeting[5:], 0) + 1 + 4
	salt = append(salt, greeting[at:at+8]...)
	rest := at + 8 + 1 + 2 + 1 + 2 + 2 + 1 + 10
	if len(greeting) < rest+mysqlSaltLen-8+1 {
		return "", salt
	}
	salt = append(salt, greeting[rest:rest+mysqlSaltLen-8]...)
	name, _, _ := strings.Cut(string(greeting[rest+mysqlSaltLen-8+1:]), "\x00")
	return name, salt
}

// mysqlOwnHead returns the beginning of our own response: protocol 4.1 and its
// authentication, plugins, TLS, packets of 16 MiB, utf8.
func mysqlOwnHead() []byte {
	head := make([]byte, mysqlHead)
	copy(head, []byte{0x00, 0x82 | mysqlSSL>>8, 0x08, 0x00, 0x00, 0x00, 0x00, 0x01, 33})
	return head
}

// mysqlFrame adds a header to a body.
func mysqlFrame(sequence byte, body []byte) []byte {
	n := len(body)
	return append([]byte{byte(n), byte(n >> 8), byte(n >> 16), sequence}, body...)
}
