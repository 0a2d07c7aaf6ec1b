package starttls

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

const (
	natsName = "nats"
	// natsInfoMax bounds the INFO, most of which is the list of the cluster's addresses.
	natsInfoMax = 32 << 10
	// natsOwnInfo goes before our refusal: clients read an error only after an INFO.
	natsOwnInfo    = `INFO {"server_id":"ambassador","version":"2.0.0","proto":1,"max_payload":1048576}` + "\r\n"
	natsHintSilent = "the server sent no INFO: if its configuration has handshake_first, set starttls_options.direct; if it is another server that speaks TLS at once, remove starttls"

	natsHintTLS = "let the server have a certificate (tls in its configuration), or remove tls and starttls (forward: --plain)"
)

func nats() Protocol {
	return Protocol{Name: natsName, Upgrade: natsUpgrade, Refuse: natsRefuse, with: natsWith}
}

func natsWith(o Options) (Protocol, error) {
	if o.EHLOName != "" {
		return Protocol{}, errNoEHLOName
	}
	p := nats()
	p.Upgrade = natsDirect
	p.IfNoTLS = "if the server begins with INFO, remove starttls_options.direct; a NATS server speaks TLS at once with handshake_first: true"
	return p, nil
}

// natsUpgrade reads the server's INFO. The server, which has offered TLS in it, takes the
// next bytes for TLS. An error of the server may follow the INFO in plaintext, such as
// that it is full: the TLS handshake finds it.
func natsUpgrade(upstream io.ReadWriter) (*Dialogue, error) {
	up := leg{side: Upstream, rw: upstream, ifClosed: hintGreetingClosed, ifSilent: natsHintSilent}
	info, offered, err := natsInfo(&up)
	if err != nil {
		return nil, err
	}
	if !offered {
		return nil, &RefusedError{Protocol: natsName, Got: got(info), What: "the server offers no TLS (its INFO has neither tls_required nor tls_available)", Advice: natsHintTLS}
	}
	return &Dialogue{Finish: replay(info), NotTLS: natsNotTLS}, nil
}

// natsDirect begins with TLS. The server's INFO follows it.
func natsDirect(io.ReadWriter) (*Dialogue, error) {
	return &Dialogue{Finish: func(downstream, upstream io.ReadWriter) (Result, error) {
		up := leg{side: Upstream, rw: upstream, ifClosed: hintGreetingClosed}
		down := leg{side: Downstream, rw: downstream}
		info, _, err := natsInfo(&up)
		if err == nil {
			err = down.forward(info)
		}
		return Result{Answered: up.answered, Down: down.forwarded}, err
	}}, nil
}

// natsInfo reads the INFO and returns it for the client, without TLS. Offered reports
// whether the server had TLS in it.
func natsInfo(up *leg) (info []byte, offered bool, err error) {
	line, err := up.lineOf(natsInfoMax, natsName, "greeted")
	switch {
	case err != nil:
		return nil, false, err
	case hasPrefixFold(line, "-ERR"):
		return nil, false, natsRefused(line)
	case !hasPrefixFold(line, "INFO ") && !hasPrefixFold(line, "INFO\t"):
		return nil, false, unexpected(natsName, "greeted", line)
	}
	return natsStripTLS(line)
}

// natsStripTLS sets what an INFO says of TLS to false: the client would begin TLS
// otherwise. Everything else stays as it is.
func natsStripTLS(line []byte) (info []byte, offered bool, err error) {
	malformed := &RefusedError{Protocol: natsName, Got: got(line), What: "the server greeted with an INFO that is not well formed"}
	text := line[len("INFO "):]
	decoder := json.NewDecoder(bytes.NewReader(text))
	if t, err := decoder.Token(); err != nil || t != json.Delim('{') {
		return nil, false, malformed
	}
	info, copied := append(make([]byte, 0, len(line)), line[:len("INFO ")]...), 0
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, false, malformed
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, false, malformed
		}
		name, _ := key.(string)
		if !natsIsTLS(name) || string(value) != "true" {
			continue
		}
		offered = offered || !strings.EqualFold(name, "tls_verify")
		end := int(decoder.InputOffset())
		info = append(append(info, text[copied:end-len(value)]...), "false"...)
		copied = end
	}
	if _, err := decoder.Token(); err != nil {
		return nil, false, malformed
	}
	return append(info, text[copied:]...), offered, nil
}

// natsIsTLS names the keys of an INFO that are about TLS. Clients ignore case.
func natsIsTLS(key string) bool {
	return strings.EqualFold(key, "tls_required") || strings.EqualFold(key, "tls_available") || strings.EqualFold(key, "tls_verify")
}

func natsRefused(line []byte) *RefusedError {
	return &RefusedError{Protocol: natsName, Got: got(line), Reply: append([]byte(natsOwnInfo), line...),
		Busy: hasPrefixFold(line, "-ERR 'maximum connections exceeded'"),
		What: fmt.Sprintf("the server refused the connection: %.200q", bytes.TrimSpace(line))}
}

// natsNotTLS recognizes an error behind the INFO. A server sends one there if it is full.
func natsNotTLS(first []byte) error {
	if !hasPrefixFold(first, "-ERR ") {
		return nil
	}
	return &RefusedError{Protocol: natsName, Got: got(first), Busy: true,
		What:   "the server sent -ERR instead of TLS, which it does when it has as many clients as it accepts",
		Advice: "raise max_connections there, or set limits.connections of the upstream below it"}
}

// natsRefuse sends an error in place of the server's INFO. The text is in quotes.
func natsRefuse(downstream io.ReadWriter, why error) error {
	text := strings.ReplaceAll(reason(why, lineReason), "'", "`")
	down := leg{side: Downstream, rw: downstream}
	return down.send(replyOr(why, []byte(natsOwnInfo+"-ERR '"+text+"'\r\n")))
}
