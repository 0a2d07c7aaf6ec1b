package starttls

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

const sha2Hello = "\x0a8.0.36\x00\x07\x00\x00\x00abcdefgh\x00\xff\xff\xff\x02\x00\xff\xdf\x15" +
	"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + "abcdefghijkl\x00caching_sha2_password\x00"

// The proofs were computed with Python's hashlib.
func TestMySQLProof(t *testing.T) {
	salt := []byte{10, 47, 74, 111, 75, 73, 34, 48, 88, 76, 114, 74, 37, 13, 3, 80, 82, 2, 23, 21, 0}
	for plugin, want := range map[string]string{
		mysqlSHA2:   "f490e76f66d9d86665ce54d98c78d0acfe2fb0b08b423da807144873d30b312c",
		mysqlNative: "6a149bdd80bda1ebf0fa2bd2cf2e9717fecc34bb",
	} {
		if proof, known := mysqlProof(plugin, "secret", salt); !known || hex.EncodeToString(proof) != want {
			t.Errorf("%s: %x, want %s", plugin, proof, want)
		}
		if proof, known := mysqlProof(plugin, "", salt); !known || proof == nil || len(proof) > 0 {
			t.Errorf("%s without a password: %x", plugin, proof)
		}
	}
	if _, known := mysqlProof("client_ed25519", "secret", salt); known {
		t.Error("ed25519 is known")
	}
}

func TestMySQLLogIn(t *testing.T) {
	native, _ := mysqlProof(mysqlNative, "secret", []byte("abcdefghabcdefghijkl"))
	sha2, _ := mysqlProof(mysqlSHA2, "secret", []byte("abcdefghabcdefghijkl"))
	other, _ := mysqlProof(mysqlNative, "secret", []byte("cccccccccccccccccccc"))
	login := func(proof []byte, plugin string) string {
		return mysqlPacket(2, "\x00\x8a\x08\x00\x00\x00\x00\x01\x21"+strings.Repeat("\x00", 23)+"app\x00"+string(rune(len(proof)))+string(proof)+plugin+"\x00")
	}
	asNative, asSHA2 := login(native, mysqlNative), login(sha2, mysqlSHA2)
	for _, tt := range []struct{ name, greeting, server, sent, err string }{
		{"native", mariaGreets, mysqlPacket(3, mysqlFine), asNative + mysqlQuit, ""},
		{"cached", mysqlPacket(0, sha2Hello), mysqlPacket(3, "\x01\x03") + mysqlPacket(4, mysqlFine), asSHA2 + mysqlQuit, ""},
		{"the password itself", mysqlPacket(0, sha2Hello), mysqlPacket(3, "\x01\x04") + mysqlPacket(5, mysqlFine), asSHA2 + mysqlPacket(4, "secret\x00") + mysqlQuit, ""},
		{"another plugin", mysqlPacket(0, sha2Hello), mysqlPacket(3, "\xfemysql_native_password\x00cccccccccccccccccccc\x00") + mysqlPacket(5, mysqlFine), asSHA2 + mysqlPacket(4, string(other)) + mysqlQuit, ""},
		{"sha256_password", mariaGreets, mysqlPacket(3, "\xfesha256_password\x00cccccccccccccccccccc\x00") + mysqlPacket(5, mysqlFine), asNative + mysqlPacket(4, "secret\x00") + mysqlQuit, ""},
		{"a plugin that we have not", mariaGreets, mysqlPacket(3, switchTo), asNative, "log in by \"client_ed25519\"; let that user have mysql_native_password"},
		{"the password in clear", mariaGreets, mysqlPacket(3, "\xfemysql_clear_password\x00"), asNative, "mysql_clear_password"},
		{"refused", mariaGreets, mysqlPacket(3, mysqlBad), asNative, "refused the login of health.user: 1045"},
		{"nothing", mariaGreets, "", asNative, "its log has the cause"},
		{"noise", mariaGreets, mysqlPacket(3, "x"), asNative, "no part of it"},
		{"out of order", mariaGreets, mysqlPacket(9, mysqlFine), asNative, "where 3 is due"},
		{"without end", mariaGreets, func() (s string) {
			for i := range mysqlPacketsMax + 1 {
				s += mysqlPacket(byte(3+i), "\x01\x03")
			}
			return s
		}(), asNative, "no verdict"},
	} {
		bothSpeeds(t, tt.name, func(t *testing.T, open func(string) *wire) {
			d, err := mysqlUpgrade(newWire(tt.greeting))
			if err != nil {
				t.Fatal(err)
			}
			up := open(tt.server)
			err = d.LogIn(up, "app", "secret")
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("err = %v, want %q", err, tt.err)
			}
			if up.out.String() != tt.sent {
				t.Errorf("sent %q, want %q", up.out.String(), tt.sent)
			}
		})
	}
}

// FuzzMySQLLogIn: with any server the login ends within bounds, reads nothing behind
// the verdict, and sends the password itself only for perform_full_authentication.
func FuzzMySQLLogIn(f *testing.F) {
	for _, server := range []string{"", mysqlPacket(3, mysqlFine) + "x", mysqlPacket(3, "\x01\x04") + mysqlPacket(5, mysqlFine), mysqlPacket(3, switchTo),
		mysqlPacket(3, "\xfe"), mysqlPacket(3, mysqlBad), mysqlPacket(3, "\xfesha256_password\x00s\x00") + mysqlPacket(5, mysqlFine), mysqlPacket(3, "\xfecaching_sha2_password\x00s\x00") + mysqlPacket(5, "\x01\x03") + mysqlPacket(6, mysqlFine)} {
		f.Add(mariaGreets, server)
		f.Add(mysqlPacket(0, sha2Hello), server)
	}
	f.Fuzz(func(t *testing.T, greeting, server string) {
		d, err := mysqlUpgrade(newWire(greeting))
		if err != nil {
			return
		}
		up := newWire(server)
		err = d.LogIn(up, "app", "a password")
		var refused *RefusedError
		if err != nil {
			checkDialogueError(t, err)
		} else if !strings.HasSuffix(up.out.String(), mysqlQuit) {
			t.Fatalf("logged in without leave: %q", up.out.String())
		}
		if strings.Contains(up.out.String(), "a password") && !strings.Contains(server, mysqlFull) && !strings.Contains(server, "\xfe"+mysqlSHA256+"\x00") || up.out.Len() > 16<<10 {
			t.Fatalf("%q was sent for %q (%v, %t)", up.out.String(), server, err, errors.As(err, &refused))
		}
	})
}
