package starttls

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

// Answers of real servers: Postfix 3.7, Dovecot 2.3 with Pigeonhole 0.5, OpenLDAP 2.5,
// INN 2.7, nats-server 2.9.
const (
	smtpGreets  = "220 mail.test ESMTP Postfix\r\n"
	smtpLists   = "250-mail.test\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 CHUNKING\r\n"
	smtpGoes    = "220 2.0.0 Ready to start TLS\r\n"
	smtpEHLO    = "EHLO [127.0.0.1]\r\n"
	imapGreets  = "* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] Dovecot ready.\r\n"
	imapGoes    = "A1 OK Begin TLS negotiation now.\r\n"
	pop3Greets  = "+OK Dovecot ready. <1.2.3@mail>\r\n"
	lmtpLHLO    = "LHLO [127.0.0.1]\r\n"
	lmtpLists   = "250-mail.test\r\n250-STARTTLS\r\n250-8BITMIME\r\n250 PIPELINING\r\n"
	sieveBanner = "\"IMPLEMENTATION\" \"Dovecot (Debian) Pigeonhole\"\r\n\"SIEVE\" \"fileinto reject\"\r\n\"SASL\" \"\"\r\n\"STARTTLS\"\r\n\"VERSION\" \"1.0\"\r\nOK \"Dovecot (Debian) ready.\"\r\n"
	sieveGoes   = "OK \"Begin TLS negotiation now.\"\r\n"
	nntpBanner  = "200 news.test InterNetNews NNRP server INN 2.7.1 ready (posting ok)\r\n"
	nntpGoes    = "382 Begin TLS negotiation now\r\n"
	natsBanner  = `INFO {"server_id":"N","version":"2.9.10","proto":1,"auth_required":true,"tls_required":true,"tls_verify":true,"nonce":"tls_required","x":{"tls_required":true},"client_id":4} ` + "\r\n"
	natsPlain   = `INFO {"server_id":"N","version":"2.9.10","proto":1,"auth_required":true,"tls_required":false,"tls_verify":false,"nonce":"tls_required","x":{"tls_required":true},"client_id":4} ` + "\r\n"
	pop3Goes    = "+OK Begin TLS negotiation now.\r\n"
	ldapGoes    = "\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00"
	ldapGoesAD  = "\x30\x84\x00\x00\x00\x28\x02\x01\x01\x78\x84\x00\x00\x00\x1f\x0a\x01\x00\x04\x00\x04\x00\x8a\x161.3.6.1.4.1.1466.20037"
)

// TestUpgrade: what the server sends, what we send, and what the client receives
// after TLS. Behind every last answer are bytes injected in plaintext: they must be
// left to TLS, which fails on them (CVE-2021-23214, CVE-2011-0411).
func TestUpgrade(t *testing.T) {
	const injected = "250 injected\r\n* OK injected\r\n+OK injected\r\n"
	for _, tt := range []struct{ protocol, name, server, sent, replayed string }{
		{"smtp", "postfix", smtpGreets + smtpLists + smtpGoes, smtpEHLO + "STARTTLS\r\n", smtpGreets},
		{"smtp", "banner of three lines", "220-a\r\n220-b\r\n220 c\r\n" + smtpLists + smtpGoes, smtpEHLO + "STARTTLS\r\n", "220-a\r\n220-b\r\n220 c\r\n"},
		{"smtp", "no text", "220\r\n250-x\r\n250 starttls\r\n220\r\n", smtpEHLO + "STARTTLS\r\n", "220\r\n"},
		{"imap", "dovecot", imapGreets + imapGoes, imapStartTLS, "* OK Dovecot ready.\r\n"},
		{"imap", "nothing but capabilities", "* OK [CAPABILITY IMAP4rev1 STARTTLS]\r\n" + imapGoes, imapStartTLS, "* OK ready\r\n"},
		{"imap", "no capabilities", "* ok hello\r\n* CAPABILITY X\r\n" + imapGoes, imapStartTLS, "* ok hello\r\n"},
		{"imap", "an alert", "* ok [ALERT] [ALERT] hello\r\n" + imapGoes, imapStartTLS, "* OK ALERT] hello\r\n"},
		{"imap", "a referral", "* OK [REFERRAL imap://x/] hello\r\n" + imapGoes, imapStartTLS, "* OK hello\r\n"},
		{"imap", "no text", "* OK\r\n" + imapGoes, imapStartTLS, "* OK\r\n"},
		{"lmtp", "dovecot", smtpGreets + lmtpLists + smtpGoes, lmtpLHLO + "STARTTLS\r\n", smtpGreets},
		{"sieve", "dovecot", sieveBanner + sieveGoes, sieveStartTLS, ""},
		{"sieve", "literals", "\"IMPLEMENTATION\" {3}\r\na\r\n\r\n\"starttls\"\r\nok (X) {2+}\r\nOK\r\nOK\r\n", sieveStartTLS, ""},
		{"sieve", "no text", "\"STARTTLS\"\r\nOK\r\nOK\r\n", sieveStartTLS, ""},
		{"nntp", "nnrpd", nntpBanner + nntpGoes, nntpStartTLS, nntpBanner},
		{"nntp", "no posting", "201 no posting\r\n" + nntpGoes, nntpStartTLS, "201 no posting\r\n"},
		{"nntp", "innd, for peers and readers", "200 innd\r\n500 What?\r\n" + nntpBanner + nntpGoes, nntpStartTLS + nntpReader + nntpStartTLS, nntpBanner},
		{"nats", "TLS is required", natsBanner, "", natsPlain},
		{"nats", "TLS is available", "INFO {\"tls_available\": true}\r\n", "", "INFO {\"tls_available\": false}\r\n"},
		{"nats", "keys in capitals, twice", "info {\"TLS_Required\":true,\"tls_required\" : true }\r\n", "", "info {\"TLS_Required\":false,\"tls_required\" : false }\r\n"},
		{"pop3", "dovecot", pop3Greets + pop3Goes, "STLS\r\n", pop3Greets},
		{"ldap", "slapd", ldapGoes, ldapStartTLS, ""},
		{"ldap", "lengths in long form", ldapGoesAD, ldapStartTLS, ""},
	} {
		bothSpeeds(t, tt.protocol+" "+tt.name, func(t *testing.T, open func(string) *wire) {
			up, down := open(tt.server+injected), newWire("")
			d, err := mustLookup(t, tt.protocol).Upgrade(up)
			if err != nil {
				t.Fatal(err)
			}
			if got := up.out.String(); got != tt.sent {
				t.Errorf("sent %q, want %q", got, tt.sent)
			}
			if got := up.unread(); got != injected {
				t.Errorf("left %q unread, want %q", got, injected)
			}
			if d.Finish != nil {
				out, err := d.Finish(down, newWire(""))
				if want := (Result{Down: int64(len(tt.replayed))}); err != nil || out.Down != want.Down || out.Answered || out.Up != 0 {
					t.Errorf("Finish: %+v, %v, want %+v", out, err, want)
				}
			}
			if got := down.out.String(); got != tt.replayed {
				t.Errorf("the client got %q, want %q", got, tt.replayed)
			}
		})
	}
}

func TestUpgradeRefused(t *testing.T) {
	line := strings.Repeat("x", lineMax)
	for _, tt := range []struct {
		protocol, name, server string
		words                  []string
		reply                  string // for the client, word for word
	}{
		{"smtp", "busy", "421 4.3.2 too busy\r\n", []string{"refused the connection", "too busy"}, "421 4.3.2 too busy\r\n"},
		{"smtp", "blocked", "554-no\r\n554 go away\r\n", []string{"go away"}, ""},
		{"smtp", "no STARTTLS", smtpGreets + "250-mail.test\r\n250 XSTARTTLS\r\n", []string{"does not offer STARTTLS", "smtpd_tls_security_level", "465"}, ""},
		{"smtp", "STARTTLS is the host's name", smtpGreets + "250 STARTTLS\r\n250 x\r\n", []string{"does not offer STARTTLS"}, ""},
		{"smtp", "no EHLO", smtpGreets + "502 5.5.1 not implemented\r\n", []string{"refused EHLO", "502"}, ""},
		{"smtp", "no certificate", smtpGreets + smtpLists + "454 4.7.0 TLS not available\r\n", []string{"refused STARTTLS", "certificate"}, ""},
		{"smtp", "mixed codes", "220-a\r\n250 b\r\n", []string{"answered"}, ""},
		{"smtp", "POP3", pop3Greets, []string{"POP3", "--starttls pop3"}, ""},
		{"smtp", "MySQL", "\x4a\x00\x00\x00\x0a8.0", []string{"MySQL", "starttls: mysql"}, ""},
		{"smtp", "TLS alert", "\x15\x03\x01\x00\x02\x02\x46", []string{"TLS alert", "remove starttls"}, ""},
		{"smtp", "HTTP", "HTTP/1.1 400 Bad Request\r\n", []string{"HTTP", "remove starttls", "--plain"}, ""},
		{"smtp", "a line without CR", "220 a\n250 b\r\n", []string{"0x0a"}, ""},
		{"smtp", "a CR in a line", "220 smtp\r250 b\r\n", []string{"0x32"}, ""},
		{"smtp", "a NUL in a line", "220 smtp\x00\r\n", []string{"0x00"}, ""},
		{"smtp", "a long line", "220 " + line, []string{"more than 4096"}, ""},
		{"smtp", "a MiB of extensions", smtpGreets + strings.Repeat("250-"+line[:1000]+"\r\n", 1000), []string{"more than 32768"}, ""},
		{"smtp", "an FTP server", "220 (vsFTPd 3.0.3)\r\n530 Please login with USER and PASS.\r\n", []string{"refused EHLO", "AUTH TLS", "not supported"}, ""},
		{"smtp", "another FTP server", "220 ProFTPD Server\r\n500 EHLO not understood\r\n", []string{"AUTH TLS", "SFTP"}, ""},
		{"lmtp", "an SMTP server", smtpGreets + "502 5.5.2 Error: command not recognized\r\n", []string{"refused LHLO", "--starttls smtp"}, ""},
		{"lmtp", "no STARTTLS", smtpGreets + "250 mail.test\r\n", []string{"does not offer STARTTLS", "Dovecot"}, ""},
		{"lmtp", "busy", "421 4.3.2 too busy\r\n", []string{"too busy"}, "421 4.3.2 too busy\r\n"},
		{"sieve", "bye", "BYE (TRYLATER) \"too many\"\r\n", []string{"refused the connection", "too many"}, ""},
		{"sieve", "no TLS", "\"STARTTLSX\"\r\nOK\r\n", []string{"does not offer STARTTLS", "ssl = required"}, ""},
		{"sieve", "not now", sieveBanner + "NO \"later\"\r\n", []string{"refused STARTTLS", "later"}, ""},
		{"sieve", "okay is another word", "OKAY\r\n", []string{"greeted"}, ""},
		{"sieve", "a MiB in a literal", "\"X\" {1048576}\r\n", []string{"more than 32768"}, ""},
		{"sieve", "literals without end", strings.Repeat("\"X\" {4000}\r\n"+line[:4000]+"\r\n", 20), []string{"more than 32768"}, ""},
		{"sieve", "IMAP", imapGreets, []string{"IMAP", "--starttls imap"}, ""},
		{"nntp", "busy", "400 too many\r\n", []string{"refused the connection", "too many"}, "400 too many\r\n"},
		{"nntp", "for good", "502 go away\r\n", []string{"go away"}, ""},
		{"nntp", "no TLS", nntpBanner + "580 no certificate\r\n", []string{"refused STARTTLS", "tlscertfile", "563"}, ""},
		{"nntp", "no TLS, nor readers", "200 innd\r\n500 What?\r\n502 no readers\r\n", []string{"refused STARTTLS, and MODE READER", "no readers"}, ""},
		{"nntp", "no TLS, but readers", "200 innd\r\n500 What?\r\n" + nntpBanner + "500 What?\r\n", []string{"refused STARTTLS: \"500"}, ""},
		{"nntp", "SMTP", smtpGreets, []string{"SMTP", "--starttls smtp"}, ""},
		{"nats", "no TLS", "INFO {\"tls_verify\":true,\"tls_required\":false}\r\n", []string{"offers no TLS", "--plain"}, ""},
		{"nats", "full", "-ERR 'maximum connections exceeded'\r\n", []string{"maximum connections"}, natsOwnInfo + "-ERR 'maximum connections exceeded'\r\n"},
		{"nats", "no object", "INFO [true]\r\n", []string{"not well formed"}, ""},
		{"nats", "an object without end", "INFO {\"tls_required\":true\r\n", []string{"not well formed"}, ""},
		{"nats", "a key without value", "INFO {\"tls_required\"}\r\n", []string{"not well formed"}, ""},
		{"nats", "too long", "INFO {\"x\":\"" + strings.Repeat(line, 9), []string{"more than 32768"}, ""},
		{"nats", "Redis", "-ERR unknown\r\n", []string{"refused the connection"}, natsOwnInfo + "-ERR unknown\r\n"},
		{"nats", "SMTP", smtpGreets, []string{"SMTP", "--starttls smtp"}, ""},
		{"imap", "bye", "* BYE too many\r\n", []string{"too many"}, ""},
		{"imap", "preauth", "* PREAUTH as you are\r\n" + imapGoes, []string{"PREAUTH", "993"}, ""},
		{"imap", "endless capabilities", "* OK [CAPABILITY IMAP4rev1\r\n" + imapGoes, []string{"no end"}, ""},
		{"imap", "no TLS", imapGreets + "A1 BAD unknown\r\n", []string{"refused STARTTLS", "BAD", "ssl = required"}, ""},
		{"imap", "not now", imapGreets + "A1 NO later\r\n", []string{"refused STARTTLS", "later"}, ""},
		{"imap", "bye in the middle", imapGreets + "* BYE x\r\n", []string{"refused STARTTLS"}, ""},
		{"imap", "another tag", imapGreets + "A2 OK\r\n", []string{"A2 OK"}, ""},
		{"imap", "a MiB of capabilities", imapGreets + strings.Repeat("* "+line[:1000]+"\r\n", 1000), []string{"32 untagged lines"}, ""},
		{"imap", "SMTP", smtpGreets, []string{"SMTP", "--starttls smtp"}, ""},
		{"pop3", "in use", "-ERR [IN-USE] locked\r\n", []string{"locked"}, "-ERR [IN-USE] locked\r\n"},
		{"pop3", "no TLS", pop3Greets + "-ERR unknown\r\n", []string{"refused STLS", "995"}, ""},
		{"pop3", "IMAP", imapGreets, []string{"IMAP", "--starttls imap"}, ""},
		{"pop3", "noise", "\xff\xfe\x01\x02\x03", []string{"no protocol known"}, ""},
		{"ldap", "no TLS", "\x30\x19\x02\x01\x01\x78\x14\x0a\x01\x02\x04\x00\x04\x0dunsupported!\x00", []string{"result 2", "unsupported!", "TLSCertificateFile", "636"}, ""},
		{"ldap", "another message", strings.Replace(ldapGoes, "\x02\x01\x01", "\x02\x01\x02", 1), []string{"refused StartTLS"}, ""},
		{"ldap", "notice of disconnection", "\x30\x0c\x02\x01\x00\x78\x07\x0a\x01\x34\x04\x00\x04\x00", []string{"result 52"}, ""},
		{"ldap", "another operation", strings.Replace(ldapGoes, "\x78", "\x61", 1), []string{"something else"}, ""},
		{"ldap", "cut short inside", "\x30\x05\x02\x01\x01\x78\x07", []string{"something else"}, ""},
		{"ldap", "endless", "\x30\x84\x00\x10\x00\x00", []string{"LDAP"}, ""},
		{"ldap", "indefinite length", "\x30\x80\x02\x01\x01", []string{"30 80"}, ""},
		{"ldap", "TLS", "\x15\x03\x01\x00\x02\x02\x46", []string{"TLS alert", "remove starttls"}, ""},
		{"ldap", "XMPP", "<?xml version='1.0'?>", []string{"XMPP", "xmpp"}, ""},
	} {
		bothSpeeds(t, tt.protocol+" "+tt.name, func(t *testing.T, open func(string) *wire) {
			_, err := mustLookup(t, tt.protocol).Upgrade(open(tt.server))
			refused := wantRefused(t, err, tt.protocol, tt.words)
			if string(refused.Reply) != tt.reply || len(refused.Got) > gotMax || len(err.Error()) > 1000 {
				t.Errorf("Reply = %q, want %q; %v", refused.Reply, tt.reply, err)
			}
		})
	}
}

// TestUpgradeCutShort: a server that closes or stops sending at any byte is an
// upstream error, with a hint if it had not sent anything yet.
func TestUpgradeCutShort(t *testing.T) {
	whole := map[string]string{"smtp": smtpGreets + smtpLists + smtpGoes, "imap": imapGreets + imapGoes, "pop3": pop3Greets + pop3Goes, "ldap": ldapGoes,
		"lmtp": smtpGreets + lmtpLists + smtpGoes, "sieve": sieveBanner + sieveGoes, "nntp": nntpBanner + nntpGoes, "nats": natsBanner}
	for protocol, server := range whole {
		p := mustLookup(t, protocol)
		for n := range server {
			_, err := p.Upgrade(newWire(server[:n]))
			var side *SideError
			if !errors.As(err, &side) || side.Side != Upstream || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s, %d bytes: err = %v", protocol, n, err)
			}
			if n == 0 && side.Hint == "" {
				t.Errorf("%s closes at once: no hint", protocol)
			}
			_, err = p.Upgrade(endingWire(server[:n], os.ErrDeadlineExceeded))
			if !errors.As(err, &side) || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%s, %d bytes and silence: err = %v", protocol, n, err)
			}
			if n == 0 && protocol != "ldap" && !strings.Contains(err.Error(), "remove starttls") {
				t.Errorf("%s is silent: %v, want to hear of TLS at once", protocol, err)
			}
		}
	}
}

// TestRefuse: each protocol's way to tell a client why there is no connection.
func TestRefuse(t *testing.T) {
	why := errors.New("dial db: refused\r\nA1 OK")
	bind := "\x30\x0c\x02\x01\x07\x60\x07\x02\x01\x03\x04\x00\x80\x00"
	for _, tt := range []struct{ protocol, client, want string }{
		{"smtp", "", "421 4.3.2 ambassador: dial db: refused  A1 OK\r\n"},
		{"imap", "", "* BYE ambassador: dial db: refused  A1 OK\r\n"},
		{"pop3", "", "-ERR [SYS/TEMP] ambassador: dial db: refused  A1 OK\r\n"},
		{"lmtp", "", "421 4.3.2 ambassador: dial db: refused  A1 OK\r\n"},
		{"sieve", "", "BYE (TRYLATER) \"ambassador: dial db: refused  A1 OK\"\r\n"},
		{"nntp", "", "400 ambassador: dial db: refused  A1 OK\r\n"},
		{"nats", "", natsOwnInfo + "-ERR 'ambassador: dial db: refused  A1 OK'\r\n"},
		{"ldap", bind, "\x30\x2f\x02\x01\x07\x61\x2a\x0a\x01\x34\x04\x00\x04\x23ambassador: dial db: refused  A1 OK"},
	} {
		down := newWire(tt.client)
		if err := mustLookup(t, tt.protocol).Refuse(down, why); err != nil {
			t.Errorf("%s: %v", tt.protocol, err)
		}
		if got := down.out.String(); got != tt.want {
			t.Errorf("%s: the client got %q, want %q", tt.protocol, got, tt.want)
		}
	}
	ldap := mustLookup(t, "ldap")
	if err := ldap.Refuse(newWire("\x30\x05\x02\x01\x01\x42\x00"), why); err != ErrNoAnswer {
		t.Errorf("an unbind: %v, want ErrNoAnswer", err)
	}
	var greeting *GreetingError
	for _, client := range []string{"GET / HTTP/1.1", "\x30\x03\x04\x01x", "\x30\x80\x00"} {
		if err := ldap.Refuse(newWire(client), why); !errors.As(err, &greeting) {
			t.Errorf("%q: %v, want a *GreetingError", client, err)
		}
	}
}

// TestRefuseWordForWord: the server's own refusal reaches the client unchanged.
func TestRefuseWordForWord(t *testing.T) {
	for protocol, reply := range map[string]string{"smtp": "421 4.3.2 too busy\r\n", "pop3": "-ERR locked\r\n"} {
		p := mustLookup(t, protocol)
		_, err := p.Upgrade(newWire(reply))
		down := newWire("")
		if err := p.Refuse(down, err); err != nil || down.out.String() != reply {
			t.Errorf("%s: the client got %q, %v, want %q", protocol, down.out.String(), err, reply)
		}
	}
}

// TestParts: NeedsClient agrees with the parts of the Dialogue.
func TestParts(t *testing.T) {
	for _, p := range protocols() {
		if p.Refuse == nil || p.Upgrade == nil || p.Name == "" {
			t.Errorf("%s has no %+v", p.Name, p)
		}
		greeting := map[string]string{"postgres": "S", "ldap": ldapGoes, "smtp": smtpGreets + smtpLists + smtpGoes, "imap": imapGreets + imapGoes,
			"pop3": pop3Greets + pop3Goes, "mysql": mariaGreets, "lmtp": smtpGreets + lmtpLists + smtpGoes, "sieve": sieveBanner + sieveGoes,
			"nntp": nntpBanner + nntpGoes, "nats": natsBanner}
		d, err := p.Upgrade(newWire(greeting[p.Name]))
		if err != nil {
			t.Fatal(p.Name, err)
		}
		if (d.Begin != nil) != p.NeedsClient || (d.BeginProbe != nil) != p.NeedsClient {
			t.Errorf("%s: NeedsClient = %v, and the Dialogue is %+v", p.Name, p.NeedsClient, d)
		}
	}
}

// TestBusy: a server at its limit is told apart from one that refuses us.
func TestBusy(t *testing.T) {
	for _, tt := range []struct {
		protocol, server string
		want             bool
	}{
		{"smtp", "421 4.7.0 too many connections\r\n", true},
		{"smtp", "450 4.7.1 try later\r\n", true},
		{"smtp", "554 go away\r\n", false},
		{"imap", "* BYE [UNAVAILABLE] too many\r\n", true},
		{"imap", "* BYE [LIMIT] too many\r\n", true},
		{"imap", "* BYE no\r\n", false},
		{"lmtp", "421 4.7.0 too many connections\r\n", true},
		{"sieve", "BYE (TRYLATER) \"too many\"\r\n", true},
		{"sieve", "BYE \"no\"\r\n", false},
		{"nntp", "400 too many\r\n", true},
		{"nntp", "502 no\r\n", false},
		{"nats", "-ERR 'maximum connections exceeded'\r\n", true},
		{"nats", "-ERR 'no'\r\n", false},
		{"pop3", "-ERR [SYS/TEMP] busy\r\n", true},
		{"pop3", "-ERR [SYS/PERM] no\r\n", false},
		{"ldap", "\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x33\x04\x00\x04\x00", true},
		{"ldap", "\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x34\x04\x00\x04\x00", false},
		{"mysql", "\x07\x00\x00\x00\xff\x10\x04full", true},  // 1040
		{"mysql", "\x07\x00\x00\x00\xff\xb3\x04full", true},  // 1203
		{"mysql", "\x07\x00\x00\x00\xff\xca\x04full", true},  // 1226
		{"mysql", "\x07\x00\x00\x00\xff\x69\x04host", false}, // 1129, locked out
		{"mysql", "\x01\x00\x00\x00\xff", false},
	} {
		_, err := mustLookup(t, tt.protocol).Upgrade(newWire(tt.server))
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Busy != tt.want {
			t.Errorf("%s %q: %v; busy %v, want %v", tt.protocol, tt.server, err, refused != nil && refused.Busy, tt.want)
		}
	}
}
