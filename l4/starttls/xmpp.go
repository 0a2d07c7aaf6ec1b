package starttls

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Bounds, in bytes, of what one side may say before TLS.
const (
	xmppHeaderMax   = 8 << 10  // a client's stream header
	xmppFeaturesMax = 32 << 10 // a server's header, features and answer
	xmppReasonMax   = 1000
	// xmppInnerMax bounds the elements directly within one: a tag is kept with many
	// times its length. Servers list fewer than 20 features.
	xmppInnerMax = 64
)

const (
	xmppName    = "xmpp"
	xmppStreams = "http://etherx.jabber.org/streams"
	xmppTLS     = "urn:ietf:params:xml:ns:xmpp-tls"
	xmppErrors  = "urn:ietf:params:xml:ns:xmpp-streams"
	xmppRequest = "<starttls xmlns='" + xmppTLS + "'/>"
	xmppClients = "jabber:client"
	xmppServers = "jabber:server"
)

func xmpp() Protocol {
	return Protocol{Name: xmppName, NeedsClient: true, Upgrade: xmppUpgrade, Refuse: xmppRefuse}
}

// xmppUpgrade says nothing: which host the stream is to, only the client knows.
func xmppUpgrade(io.ReadWriter) (*Dialogue, error) {
	d := new(xmppDialogue)
	return &Dialogue{Begin: d.begin, BeginProbe: xmppAlone, Finish: d.finish, Refuse: d.refuse}, nil
}

// xmppDialogue is one connection's.
type xmppDialogue struct {
	header xmppHeader
}

// xmppHeader is the beginning of a client's stream.
type xmppHeader struct {
	text              string // all that was read of it
	to, from, content string // content is the namespace of the stanzas
}

// begin asks for TLS in the name of the client, whose own header it keeps: the
// server gets that under TLS.
func (d *xmppDialogue) begin(downstream, upstream io.ReadWriter) (Outcome, error) {
	var err error
	if d.header, err = xmppReadHeader(downstream); err != nil {
		return Outcome{}, err
	}
	return Outcome{}, xmppAsk(upstream, d.header)
}

// finish opens the stream as the client did; the server's answer is the relay's.
func (d *xmppDialogue) finish(_, upstream io.ReadWriter) (Outcome, error) {
	up := leg{side: Upstream, rw: upstream}
	err := up.forward([]byte(d.header.text))
	return Outcome{Up: up.forwarded}, err
}

func (d *xmppDialogue) refuse(why error) []byte { return xmppError(d.header, why) }

// xmppAlone is for a trial of a port for clients: one for servers would want a
// stream from a server.
func xmppAlone(upstream io.ReadWriter, serverName string) error {
	if serverName == "" {
		return &RefusedError{Protocol: xmppName, What: "no name to ask the server for", Advice: "set tls.server_name to its domain"}
	}
	return xmppAsk(upstream, xmppHeader{to: serverName, content: xmppClients})
}

// xmppRefuse answers the client's stream header with a stream error.
func xmppRefuse(downstream io.ReadWriter, why error) error {
	header, err := xmppReadHeader(downstream)
	if err != nil {
		return err
	}
	down := leg{side: Downstream, rw: downstream}
	return down.say(xmppError(header, why))
}

// xmppError is a whole stream that says why it ends (RFC 6120 §4.9).
func xmppError(h xmppHeader, why error) []byte {
	content := h.content
	if content == "" {
		content = xmppClients
	}
	return fmt.Appendf(nil, "<?xml version='1.0'?><stream:stream id='ambassador' from='%s' version='1.0' xml:lang='en' xmlns='%s' xmlns:stream='%s'>"+
		"<stream:error><remote-connection-failed xmlns='%[4]s'/><text xmlns='%[4]s'>%s</text></stream:error></stream:stream>",
		escaped(h.to), escaped(content), xmppStreams, xmppErrors, escaped(reason(why, xmppReasonMax)))
}

func escaped(s string) string {
	var b bytes.Buffer
	xml.EscapeText(&b, []byte(s)) // a Buffer takes everything
	return b.String()
}

// xmppReadHeader reads a client's XML declaration, if it sends one, and its
// stream tag, to the last byte of that.
func xmppReadHeader(downstream io.ReadWriter) (xmppHeader, error) {
	r := xmppReader{leg: leg{side: Downstream, rw: downstream}, left: xmppHeaderMax}
	stream, err := r.open()
	h := xmppHeader{text: r.text.String()}
	var wrong *xmppSyntax
	switch {
	case errors.As(err, &wrong) && strings.HasPrefix(h.text, "\x16"):
		return h, xmppGreeting("a TLS ClientHello: turn TLS off in it, the ambassador does the TLS")
	case errors.As(err, &wrong):
		return h, xmppGreeting(wrong.what)
	case err != nil:
		return h, err
	}
	h.to, h.from, h.content = stream.attr("", "to"), stream.attr("", "from"), stream.attr("", "xmlns")
	switch {
	case h.content != xmppClients && h.content != xmppServers:
		return h, xmppGreeting(fmt.Sprintf("a stream of %.100q, which is neither %s nor %s", h.content, xmppClients, xmppServers))
	case stream.attr("", "version") == "":
		return h, xmppGreeting("a stream without a version, which has no STARTTLS: update the client")
	case h.to == "":
		return h, xmppGreeting("a stream header without to, the server's domain")
	}
	return h, nil
}

func xmppGreeting(detail string) *GreetingError {
	return &GreetingError{Protocol: xmppName, Detail: detail}
}

// xmppAsk opens a stream of our own, with no more of the client's than the
// server needs for its answer, and begins TLS in it (RFC 6120 §5.4).
func xmppAsk(upstream io.ReadWriter, h xmppHeader) error {
	r := xmppReader{left: xmppFeaturesMax, leg: leg{side: Upstream, rw: upstream,
		ifClosed: "the server closed instead of answering the stream header: it is no XMPP server, or speaks TLS at once (then remove starttls)",
		ifSilent: "the server did not answer the stream header: if it speaks TLS at once, remove starttls"}}
	from := ""
	if h.content == xmppServers && h.from != "" {
		from = " from='" + escaped(h.from) + "'"
	}
	opening := fmt.Sprintf("<?xml version='1.0'?><stream:stream to='%s'%s version='1.0' xmlns='%s' xmlns:stream='%s'>", escaped(h.to), from, h.content, xmppStreams)
	if err := r.say([]byte(opening)); err != nil {
		return err
	}
	if _, err := r.open(); err != nil {
		return xmppRefused(&r, err)
	}
	if err := r.features(); err != nil {
		return xmppRefused(&r, err)
	}
	if err := r.say([]byte(xmppRequest)); err != nil {
		return err
	}
	return xmppRefused(&r, r.proceed())
}

// xmppRefused makes a refusal of what was wrong with the server's XML.
func xmppRefused(r *xmppReader, err error) error {
	var wrong *xmppSyntax
	if !errors.As(err, &wrong) {
		return err
	}
	text := r.text.Bytes()
	if first := bytes.TrimLeft(text, " \t\r\n"); len(first) == 0 || first[0] != '<' {
		return stranger(xmppName, "answered", r.more(text))
	}
	return &RefusedError{Protocol: xmppName, Got: got(text), What: "the server sent " + wrong.what, Advice: wrong.advice}
}

// xmppSyntax is a side that sent what does not belong there.
type xmppSyntax struct{ what, advice string }

func (e *xmppSyntax) Error() string { return e.what }

// xmppTag is one tag: a start or an end, or both.
type xmppTag struct {
	xml.StartElement
	ends, empty bool // </name>, <name/>
}

func (t *xmppTag) attr(prefix, name string) string {
	for _, a := range t.Attr {
		if a.Name.Space == prefix && a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// xmppReader reads tags, byte by byte so that nothing behind the last is read.
type xmppReader struct {
	leg
	text bytes.Buffer // all that was read
	left int          // how much more may be
}

// open reads a stream's beginning.
func (r *xmppReader) open() (*xmppTag, error) {
	text, err := r.tag()
	if err == nil && strings.HasPrefix(text, "<?xml ") {
		text, err = r.tag()
	}
	if err != nil {
		return nil, err
	}
	stream, err := parseTag(text)
	if err != nil {
		return nil, err
	}
	if stream.Name.Local != "stream" || stream.ends || stream.empty || stream.attr("xmlns", stream.Name.Space) != xmppStreams {
		return nil, &xmppSyntax{what: fmt.Sprintf("%.100q, which opens no XMPP stream", text)}
	}
	return stream, nil
}

// whole reads an element to its end: its tag, and those within it.
func (r *xmppReader) whole() (first *xmppTag, inner []*xmppTag, err error) {
	if first, err = r.next(); err == nil && !first.empty {
		inner, err = r.inside()
	}
	return first, inner, err
}

// features reads the server's features, and wants STARTTLS among them.
func (r *xmppReader) features() error {
	first, inner, err := r.whole()
	if err != nil {
		return err
	}
	if first.Name.Local != "features" {
		return xmppSaid("%s", first, inner)
	}
	for _, t := range inner {
		if t.Name.Local == "starttls" && t.attr("", "xmlns") == xmppTLS {
			return nil
		}
	}
	return &xmppSyntax{"features without STARTTLS", "let it have a certificate for the domain (Prosody: certificates, ssl), " +
		"or use its port for TLS at once (5223) without starttls"}
}

// proceed reads the answer to STARTTLS, to its last byte.
func (r *xmppReader) proceed() error {
	first, inner, err := r.whole()
	if err != nil {
		return err
	}
	if first.Name.Local == "proceed" && first.attr("", "xmlns") == xmppTLS && len(inner) == 0 {
		return nil
	}
	return xmppSaid("%s instead of proceed", first, inner)
}

// xmppSaid names an element that came instead of another, and what is in it: the
// condition of an error.
func xmppSaid(format string, first *xmppTag, inner []*xmppTag) *xmppSyntax {
	names := fmt.Sprintf("%.50q", first.Name.Local)
	for _, t := range inner[:min(len(inner), 3)] {
		names += fmt.Sprintf(" %.50q", t.Name.Local)
	}
	return &xmppSyntax{what: fmt.Sprintf(format, names)}
}

// next reads a tag that begins an element.
func (r *xmppReader) next() (*xmppTag, error) {
	text, err := r.tag()
	if err != nil {
		return nil, err
	}
	t, err := parseTag(text)
	if err == nil && t.ends {
		err = &xmppSyntax{what: fmt.Sprintf("%.100q out of place", text)}
	}
	return t, err
}

// inside reads up to the end of an element that has begun, and returns its
// children.
func (r *xmppReader) inside() (children []*xmppTag, err error) {
	for depth := 1; depth > 0; {
		text, err := r.tag()
		if err != nil {
			return nil, err
		}
		t, err := parseTag(text)
		if err != nil {
			return nil, err
		}
		if depth == 1 && !t.ends {
			if len(children) == xmppInnerMax {
				return nil, &xmppSyntax{what: fmt.Sprintf("more than %d elements in one", xmppInnerMax)}
			}
			children = append(children, t)
		}
		switch {
		case t.ends:
			depth--
		case !t.empty:
			depth++
		}
	}
	return children, nil
}

// tag reads text up to a tag, which it drops, and the tag to its last byte.
func (r *xmppReader) tag() (string, error) {
	var b [1]byte
	start, quote := -1, byte(0)
	for r.left > 0 {
		r.left--
		read := r.readRest
		if r.text.Len() == 0 {
			read = r.read
		}
		if err := read(b[:]); err != nil {
			return "", err
		}
		r.text.WriteByte(b[0])
		switch {
		case start < 0 && b[0] == '<':
			start = r.text.Len() - 1
		case start < 0 && r.text.Len() == 1 && !strings.ContainsRune(" \t\r\n", rune(b[0])):
			return "", &xmppSyntax{what: fmt.Sprintf("%q, which begins no XML", b[0])}
		case start < 0:
		case quote != 0 && b[0] == quote:
			quote = 0
		case quote == 0 && (b[0] == '\'' || b[0] == '"'):
			quote = b[0]
		case quote == 0 && b[0] == '>':
			return string(r.text.Bytes()[start:]), nil
		}
	}
	return "", &xmppSyntax{what: fmt.Sprintf("more than %d bytes", r.text.Len())}
}

// parseTag takes a tag apart. Comments, declarations and instructions are not
// allowed in XMPP (RFC 6120 §11.1), and could hide a tag.
func parseTag(text string) (*xmppTag, error) {
	wrong := &xmppSyntax{what: fmt.Sprintf("%.100q, which is no XMPP", text)}
	d := xml.NewDecoder(strings.NewReader(text))
	token, err := d.RawToken()
	if err != nil {
		return nil, wrong
	}
	switch t := token.(type) {
	case xml.StartElement:
		return &xmppTag{StartElement: t.Copy(), empty: strings.HasSuffix(text, "/>")}, nil
	case xml.EndElement:
		return &xmppTag{StartElement: xml.StartElement{Name: t.Name}, ends: true}, nil
	}
	return nil, wrong
}
