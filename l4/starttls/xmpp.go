package starttls

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Bounds, in bytes, of what one side may send before TLS.
const (
	xmppHeaderMax   = 8 << 10  // a client's stream header
	xmppFeaturesMax = 32 << 10 // a server's header, features and answer
	xmppReasonMax   = 1000
	// xmppInnerMax bounds the children of an element: a parsed tag takes many times
	// its length. Servers list fewer than 20 features.
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

// xmppUpgrade sends nothing: only the client knows the domain of the stream.
func xmppUpgrade(io.ReadWriter) (*Dialogue, error) {
	d := new(xmppDialogue)
	return &Dialogue{Begin: d.begin, BeginProbe: xmppBeginProbe, Finish: d.finish, Refuse: d.refuse}, nil
}

// xmppDialogue is the state of one connection.
type xmppDialogue struct {
	header xmppHeader
}

// xmppHeader is the beginning of a client's stream.
type xmppHeader struct {
	text              string // as read
	to, from, content string // content is the namespace of the stanzas
}

// begin asks for TLS on behalf of the client, and keeps the client's header:
// finish sends it to the server under TLS.
func (d *xmppDialogue) begin(downstream, upstream io.ReadWriter) (Result, error) {
	var err error
	if d.header, err = xmppReadHeader(downstream); err != nil {
		return Result{}, err
	}
	return Result{}, xmppAsk(upstream, d.header)
}

// finish opens the stream with the client's header; the relay handles the
// server's answer.
func (d *xmppDialogue) finish(_, upstream io.ReadWriter) (Result, error) {
	up := leg{side: Upstream, rw: upstream}
	err := up.forward([]byte(d.header.text))
	return Result{Up: up.forwarded}, err
}

func (d *xmppDialogue) refuse(why error) []byte { return xmppError(d.header, why) }

// xmppBeginProbe is for the client port of a server: a port for servers would
// expect the stream of a server.
func xmppBeginProbe(upstream io.ReadWriter, serverName string) error {
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
	return down.send(xmppError(header, why))
}

// xmppError returns a complete stream with the reason for its end (RFC 6120
// §4.9).
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
	xml.EscapeText(&b, []byte(s)) // a Buffer never fails
	return b.String()
}

// xmppReadHeader reads a client's XML declaration, if it sends one, and its
// stream tag, and no byte beyond.
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

// xmppAsk opens our own stream, with only those attributes of the client's that
// the server needs for its answer, and begins TLS in it (RFC 6120 §5.4).
func xmppAsk(upstream io.ReadWriter, h xmppHeader) error {
	r := xmppReader{left: xmppFeaturesMax, leg: leg{side: Upstream, rw: upstream,
		ifClosed: "the server closed instead of answering the stream header: it is no XMPP server, or speaks TLS at once (then remove starttls)",
		ifSilent: "the server did not answer the stream header: if it speaks TLS at once, remove starttls"}}
	from := ""
	if h.content == xmppServers && h.from != "" {
		from = " from='" + escaped(h.from) + "'"
	}
	opening := fmt.Sprintf("<?xml version='1.0'?><stream:stream to='%s'%s version='1.0' xmlns='%s' xmlns:stream='%s'>", escaped(h.to), from, h.content, xmppStreams)
	if err := r.send([]byte(opening)); err != nil {
		return err
	}
	if _, err := r.open(); err != nil {
		return xmppRefused(&r, err)
	}
	if err := r.features(); err != nil {
		return xmppRefused(&r, err)
	}
	if err := r.send([]byte(xmppRequest)); err != nil {
		return err
	}
	return xmppRefused(&r, r.proceed())
}

// xmppRefused turns an xmppSyntax about the server into a RefusedError.
func xmppRefused(r *xmppReader, err error) error {
	var wrong *xmppSyntax
	if !errors.As(err, &wrong) {
		return err
	}
	text := r.text.Bytes()
	if first := bytes.TrimLeft(text, " \t\r\n"); len(first) == 0 || first[0] != '<' {
		return unexpected(xmppName, "answered", r.more(text))
	}
	return &RefusedError{Protocol: xmppName, Got: got(text), What: "the server sent " + wrong.what, Advice: wrong.advice}
}

// xmppSyntax says that a side sent something that is not allowed there.
type xmppSyntax struct{ what, advice string }

func (e *xmppSyntax) Error() string { return e.what }

// xmppTag is one tag: a start tag, an end tag, or an empty element.
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

// xmppReader reads tags, byte by byte so that no byte behind the last one is
// read.
type xmppReader struct {
	leg
	text bytes.Buffer // all bytes read
	left int          // how many more may be read
}

// open reads the beginning of a stream.
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

// whole reads an element to its end: its tag, and its children.
func (r *xmppReader) whole() (first *xmppTag, inner []*xmppTag, err error) {
	if first, err = r.next(); err == nil && !first.empty {
		inner, err = r.inside()
	}
	return first, inner, err
}

// features reads the server's features, and requires STARTTLS among them.
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

// proceed reads the answer to STARTTLS, and no byte beyond.
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

// xmppSaid describes an unexpected element with its first children, like the
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

// inside reads up to the end of an open element, and returns its children.
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

// tag skips text up to a tag, and reads the tag and no byte beyond.
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

// parseTag parses a tag. It refuses comments, declarations and instructions,
// which XMPP does not allow (RFC 6120 §11.1), and which could hide a tag.
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
