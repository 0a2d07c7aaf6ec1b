package integration

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// TestGuesses proves that hundreds of guesses at one user's password lock no user out:
// not that user, who logs in for the first time from another address; not another
// user at the address of the guesses; and no user who has logged in before.
func TestGuesses(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("needs several addresses of loopback")
	}
	var text string
	for _, user := range []string{"victim", "known", "new"} {
		hash, err := bcrypt.GenerateFromPassword([]byte("secret"), 11) // the guesses are work for more than timeouts.handshake
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf("%s:%s\n", user, hash)
	}
	a := startLean(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
upstreams:
  internet: {dynamic: true}
listeners:
  socks: {listen: "127.0.0.1:0", socks5: {users_file: %s}, rules: [{ip: [127.0.0.0/8], upstream: internet}]}
`, writeFile(t, "users.htpasswd", text))))
	echo := startServer(t, nil, echoLines)
	from := func(ip string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		c, err := d.DialContext(t.Context(), "tcp", a.addr("socks"))
		if err != nil {
			t.Error(err)
			return nil
		}
		c.SetDeadline(time.Now().Add(2 * patience))
		return c
	}
	logIn := func(ip, user string) {
		t.Helper()
		c := from(ip)
		if c == nil {
			return
		}
		defer c.Close()
		if reply, err := socksAsk(c, user+":secret", echo.addr); err != nil || reply != socksOK {
			t.Errorf("%s from %s: reply %d, %v", user, ip, reply, err)
		}
	}
	const guesser = "127.0.0.2"
	logIn(guesser, "known")

	var sent, answered sync.WaitGroup
	for i := range 600 {
		sent.Add(1)
		answered.Go(func() {
			c := from(guesser)
			if c == nil {
				sent.Done()
				return
			}
			defer c.Close()
			fmt.Fprintf(c, "\x05\x01\x02\x01\x06victim\x08%-8d", i)
			sent.Done()
			reply := make([]byte, 4)
			if n, err := io.ReadFull(c, reply); err != nil && n > 2 || string(reply[:n]) != "\x05\x02\x01\x01"[:n] {
				t.Errorf("a guess: %q, %v", reply[:n], err)
			}
		})
	}
	sent.Wait()
	logIn("127.0.0.1", "victim")
	logIn(guesser, "new")
	logIn(guesser, "known")
	answered.Wait()
	a.await(`"stage":"greet","reason":"limit".*"limit":"logins"`)
}
