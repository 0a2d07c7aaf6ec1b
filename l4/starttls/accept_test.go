package starttls

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
)

func TestAcceptNames(t *testing.T) {
	if got, want := AcceptNames(), []string{"postgres"}; !reflect.DeepEqual(got, want) {
		t.Errorf("AcceptNames() = %q, want %q", got, want)
	}
}

// The specification of Accept: what the client sends, what it receives, and which
// bytes are left for TLS.
func TestPostgresAccept(t *testing.T) {
	hello := "\x16\x03\x01\x02\x00\x01"
	for _, tt := range []struct {
		name, says, receives, unread string
		want                         Accepted
		err                          string
	}{
		{"SSLRequest", sslRequest + hello, "S", hello, Accepted{}, ""},
		{"GSSENCRequest first", gssRequest + sslRequest + hello, "NS", hello, Accepted{}, ""},
		{"TLS at once", hello, "", hello[4:], Accepted{Hello: []byte(hello[:4])}, ""},
		{"cancel", cancel + "x", "", "x", Accepted{Cancel: []byte(cancel)}, ""},
		{"long cancel", gssRequest + longCancel(256), "N", "", Accepted{Cancel: []byte(longCancel(256))}, ""},
		{"without TLS", startup, "", "", Accepted{}, "set sslmode=verify-full"},
		{"TLS after GSSAPI, unasked", gssRequest + hello, "N", "\x00\x01", Accepted{}, "ClientHello"},
		{"too much", gssRequest + gssRequest + gssRequest + gssRequest, "NNN", "", Accepted{}, "more than 3"},
		{"HTTP", "GET / HTTP/1.1", "", "/ HTTP/1.1", Accepted{}, "HTTP request"},
	} {
		bothSpeeds(t, tt.name, func(t *testing.T, open func(string) *wire) {
			down := open(tt.says)
			got, err := pgAccept(down)
			if tt.name == "without TLS" {
				if text := down.out.String(); !strings.HasPrefix(text, "E") || !strings.Contains(text, tt.err) {
					t.Errorf("the client receives %q", text)
				}
			} else if received := down.out.String(); received != tt.receives || down.unread() != tt.unread {
				t.Errorf("the client receives %q, and %q is left; want %q and %q", received, down.unread(), tt.receives, tt.unread)
			}
			var greeting *GreetingError
			if tt.err != "" && (!errors.As(err, &greeting) || !strings.Contains(err.Error(), tt.err)) || tt.err == "" && err != nil {
				t.Errorf("err = %v, want %q", err, tt.err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("accepted %+v, want %+v", got, tt.want)
			}
		})
	}
	var side *SideError
	if _, err := pgAccept(newWire("")); !errors.As(err, &side) || !side.Clean || side.Err != io.EOF {
		t.Errorf("a knock: %v", err)
	}
}

func FuzzPostgresAccept(f *testing.F) {
	for _, client := range []string{"", sslRequest, gssRequest + sslRequest + "\x16", "\x16\x03\x01\x02", cancel, longCancel(256), startup, "\x16\x02\x00\x00", "GET / HTTP"} {
		f.Add(client)
	}
	f.Fuzz(func(t *testing.T, client string) {
		down := newWire(client)
		got, err := pgAccept(down)
		said, received := client[:len(client)-len(down.unread())], down.out.String()
		answers, packet := splitClient(strings.TrimSuffix(said, sslRequest))
		switch {
		case err != nil:
			checkDialogueError(t, err)
			if got.Hello != nil || got.Cancel != nil {
				t.Fatalf("%+v beside %v", got, err)
			}
		case got.Cancel != nil:
			if string(got.Cancel) != packet || received != strings.Repeat("N", answers) {
				t.Fatalf("cancel %q of %q", got.Cancel, said)
			}
		case got.Hello != nil:
			if string(got.Hello) != said || received != "" {
				t.Fatalf("hello %q of %q, the client received %q", got.Hello, said, received)
			}
		case !strings.HasSuffix(said, sslRequest) || packet != "" || received != strings.Repeat("N", answers)+"S":
			t.Fatalf("TLS after %q, the client received %q", said, received)
		}
	})
}

// sasl returns a client's choice of a mechanism, with the beginning of its message.
func sasl(mechanism, gs2 string) string {
	body := mechanism + "\x00" + fmt.Sprintf("\x00\x00\x00%c", len(gs2)) + gs2
	return "p" + fmt.Sprintf("\x00\x00\x00%c", 4+len(body)) + body
}

// A client with its own TLS cannot bind its login to it: it gets an error before the
// server sees a message that it would take for an attack.
func TestPostgresLoginThroughTwoTLS(t *testing.T) {
	for _, tt := range []struct {
		name, offer, choice string
		forwarded           bool // the choice
		err                 string
	}{
		{"without the wish to bind", saslBoth, sasl("SCRAM-SHA-256", "n,,n=,r=abc"), true, ""},
		{"with it", saslBoth, sasl("SCRAM-SHA-256", "y,,n=,r=abc"), false, "set channel_binding=disable"},
		{"another mechanism", saslOAuth, sasl("OAUTHBEARER", "n,,\x01auth=x"), true, ""},
		{"no message at all", saslBoth, sasl("SCRAM-SHA-256", ""), true, ""},
		{"a server that cannot bind", saslPlain, sasl("SCRAM-SHA-256", "y,,n=,r=abc"), false, ""},
		{"no SASL", authMD5, "p", false, ""},
		{"no choice", saslBoth, "X\x00\x00\x00\x04", false, "choice of a SASL mechanism is due"},
		{"too long a choice", saslBoth, "p\x00\x10\x00\x00", false, "choice of a SASL mechanism is due"},
	} {
		bothSpeeds(t, tt.name, func(t *testing.T, open func(string) *wire) {
			down, up := open(startup+tt.choice), open(tt.offer)
			out, err := pgFinish(down, up, true)
			want := startup
			if tt.forwarded {
				want += tt.choice
			}
			var greeting *GreetingError
			if tt.err != "" && (!errors.As(err, &greeting) || !strings.Contains(err.Error(), tt.err)) || tt.err == "" && err != nil {
				t.Errorf("err = %v, want %q", err, tt.err)
			}
			if got := up.out.String(); got != want || out.Up != int64(len(want)) {
				t.Errorf("the server got %q, want %q; %+v", got, want, out)
			}
		})
	}
}
