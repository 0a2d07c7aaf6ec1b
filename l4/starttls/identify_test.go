package starttls

import (
	"fmt"
	"strings"
	"testing"
)

func TestUnsupported(t *testing.T) {
	if why := Unsupported("ftp"); !strings.Contains(why, "AUTH TLS") || !strings.Contains(why, "SFTP") {
		t.Errorf("ftp: %q", why)
	}
	for _, name := range append(Names(), "gopher", "none", "") {
		if why := Unsupported(name); why != "" {
			t.Errorf("%s: %q", name, why)
		}
	}
}

func TestIdentify(t *testing.T) {
	for _, tt := range []struct {
		first  string
		port   uint16
		what   string // "" or a part of it
		advice string
	}{
		{"\x4a\x00\x00\x00\x0a", 3306, "MySQL", "starttls: mysql"},
		{"\x45\x00\x00\x00\xff", 1, "MySQL", "starttls: mysql"},
		{"\x00\x00\x00\x00\x0a", 1, "no protocol", ""},
		{"\x4a\x00\x00\x01\x0a", 1, "no protocol", ""},
		{"\x4a\x10\x00\x00\x0a", 1, "no protocol", ""},
		{"E\x00\x00\x00\x6c", 1, "PostgreSQL", "set starttls: postgres"},
		{"0\x0c\x02\x01\x00", 1, "LDAP", "starttls: ldap"},
		{"0\x84\x00\x00\x00", 1, "LDAP", "starttls: ldap"},
		{"00000", 1, "no protocol", ""},
		{"220 m", 587, "SMTP", "starttls: smtp"},
		{"220-m", 2525, "SMTP", "starttls: smtp"},
		{"421 t", 25, "SMTP", "starttls: smtp"},
		{"554 n", 25, "SMTP", "starttls: smtp"},
		{"BYE \"", 4190, "ManageSieve", "starttls: sieve"},
		{"220 v", 21, "FTP", "not supported"},
		{"220 m", 24, "LMTP", "starttls: lmtp"},
		{"200 n", 119, "NNTP", "starttls: nntp"},
		{"201 n", 1, "NNTP", "starttls: nntp"},
		{"\"IMPL", 4190, "ManageSieve", "starttls: sieve"},
		{"INFO ", 4222, "NATS", "starttls: nats"},
		{"2200x", 1, "no protocol", ""},
		{"5xx x", 1, "no protocol", ""},
		{"* OK ", 143, "IMAP", "starttls: imap"},
		{"* PRE", 143, "IMAP", "starttls: imap"},
		{"+OK r", 110, "POP3", "starttls: pop3"},
		{"-ERR ", 110, "POP3", "starttls: pop3"},
		{"-ERR ", 6379, "Redis", "--plain"},
		{"-DENI", 6379, "Redis", "--plain"},
		{"-1234", 1, "no protocol", ""},
		{"<?xml", 5222, "XMPP", "starttls: xmpp"},
		{"<stre", 5222, "XMPP", "starttls: xmpp"},
		{"SSH-2", 22, "SSH", "check the endpoint"},
		{"HTTP/", 443, "HTTP", "--plain"},
		{"<html", 80, "HTTP", "--plain"},
		{"AMQP\x00", 5672, "AMQP", "TLS port"},
		{"\x15\x03\x03\x00\x02", 443, "TLS alert", "log"},
		{"\x16\x03\x03\x00\x7a", 443, "TLS handshake", ""},
		{"\x04\x01\x00\x2b\x00", 1433, "SQL Server", "TDS"},
		{"\x01\x02\x03\x04\x05", 1, "01 02 03 04 05", ""},
		{"\x01\x02\x03\x04\x05", 5432, "no protocol", "set starttls: postgres"},
		{"", 5432, "", "set starttls: postgres"},
		{"", 6432, "", "set starttls: postgres"},
		{"", 3306, "", "starttls: mysql"},
		{"", 389, "", "starttls: ldap"},
		{"", 25, "", "starttls: smtp"},
		{"", 587, "", "starttls: smtp"},
		{"", 143, "", "starttls: imap"},
		{"", 110, "", "starttls: pop3"},
		{"", 5222, "", "starttls: xmpp"},
		{"", 5269, "", "starttls: xmpp"},
		{"", 24, "", "starttls: lmtp"},
		{"", 119, "", "starttls: nntp"},
		{"", 4190, "", "starttls: sieve"},
		{"", 4222, "", "starttls: nats"},
		{"", 563, "", ""},
		{"", 6379, "", "--plain"},
		{"", 80, "", "--plain"},
		{"", 1883, "", "MQTT"},
		{"", 1433, "", "TDS"},
		{"", 443, "", ""},
		{"", 5433, "", "--starttls postgres"},
		{"", 10389, "", "--starttls ldap"},
		{"", 0, "", ""},
	} {
		t.Run(fmt.Sprintf("%q:%d", tt.first, tt.port), func(t *testing.T) {
			what, advice := Identify([]byte(tt.first), tt.port)
			if !strings.Contains(what, tt.what) || (what == "") != (tt.what == "") {
				t.Errorf("what = %q, want %q", what, tt.what)
			}
			if !strings.Contains(advice, tt.advice) || (advice == "") != (tt.advice == "") {
				t.Errorf("advice = %q, want %q", advice, tt.advice)
			}
		})
	}
}

// Each protocol is advised for the port where its servers usually are.
func TestIdentifyKnowsEveryProtocol(t *testing.T) {
	var advised strings.Builder
	for port := range 1 << 16 {
		_, advice := Identify([]byte("hello"), uint16(port))
		advised.WriteString(advice)
	}
	for _, name := range Names() {
		if !strings.Contains(advised.String(), fits(name)) {
			t.Errorf("%s: no port leads to it; add it to adviceForPort", name)
		}
	}
}
