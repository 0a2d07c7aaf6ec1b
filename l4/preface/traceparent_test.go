package preface

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

const (
	someTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	someParent = "00f067aa0ba902b7"
)

// The specification of which texts are a traceparent: W3C Trace Context, section 3.2.2.
func TestParseTraceparent(t *testing.T) {
	const ids = someTrace + "-" + someParent
	for text, want := range map[string]string{
		"00-" + ids + "-01":       "sampled",
		"00-" + ids + "-00":       "not sampled",
		"00-" + ids + "-03":       "sampled",     // an unknown flag
		"00-" + ids + "-fe":       "not sampled", // only unknown flags
		"01-" + ids + "-01":       "sampled",     // a later version
		"cc-" + ids + "-01-extra": "sampled",     // with more behind

		"":                        "",
		"00":                      "",
		"00-" + ids:               "",
		"00-" + ids + "-1":        "",
		"00-" + ids + "-01-":      "", // version 00 ends here
		"00-" + ids + "-01-extra": "",
		"cc-" + ids + "-01extra":  "",
		"ff-" + ids + "-01":       "", // no version
		"0x-" + ids + "-01":       "",
		"00-" + ids + "-0x":       "",
		"00_" + ids + "-01":       "",
		"00-" + ids + "_01":       "",
		" 00-" + ids + "-01":      "",
		strings.ToUpper("00-" + ids)[:3] + strings.ToUpper(ids) + "-01":          "",
		"00-" + strings.Repeat("0", 32) + "-" + someParent + "-01":               "",
		"00-" + someTrace + "-" + strings.Repeat("0", 16) + "-01":                "",
		"00-" + someTrace[:31] + "g-" + someParent + "-01":                       "",
		"00-" + someTrace + "-" + someParent[:15] + "G-01":                       "",
		"00-" + someTrace[:16] + "-" + someTrace[16:] + someParent[1:] + "-0-01": "",
	} {
		got, as := ParseTraceparent(text), ""
		switch {
		case got.IsValid() && got.Sampled:
			as = "sampled"
		case got.IsValid():
			as = "not sampled"
		}
		if as != want {
			t.Errorf("%q: %q, want %q", text, as, want)
		}
		if want != "" && (hex.EncodeToString(got.TraceID[:]) != someTrace || hex.EncodeToString(got.ParentID[:]) != someParent) {
			t.Errorf("%q: %x %x", text, got.TraceID, got.ParentID)
		}
		if want == "" && got != (Traceparent{}) {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// A bad traceparent is as none, and does not refuse the client; other keys still count.
func TestTraceparentIsIgnored(t *testing.T) {
	good := "traceparent=00-" + someTrace + "-" + someParent + "-01"
	for text, valid := range map[string]bool{
		good + ",tag=x":                     true,
		"tag=x," + good:                     true,
		"traceparent=,tag=x":                false,
		"traceparent=00-1-2-3,tag=x":        false,
		good + "," + good + ",tag=x":        false,
		good + ",traceparent=no,tag=x":      false,
		"traceparent=no," + good + ",tag=x": false,
	} {
		h, err := parseHints(text, ',')
		if err != nil || h.Tag != "x" || h.Trace.IsValid() != valid {
			t.Errorf("%s: %+v, %v", text, h, err)
		}
	}
	if h := (Hints{}).Over(Hints{Trace: ParseTraceparent(good[len("traceparent="):])}); !h.Trace.IsValid() {
		t.Error("the traceparent of the PROXY header is lost")
	}
}

// A CONNECT request may have the traceparent in the header of the standard.
func TestTraceparentOfConnect(t *testing.T) {
	other := strings.Replace(someTrace, "4", "5", 1)
	header := func(name, trace string) string { return name + "00-" + trace + "-" + someParent + "-01\r\n" }
	for head, want := range map[string]string{
		header("traceparent: ", someTrace):                                                           someTrace,
		"traceparent: 00-1-2-3\r\n":                                                                  "",
		header("traceparent: ", someTrace) + header("Traceparent: ", someTrace):                      "",
		header("traceparent: ", someTrace) + header("Ambassador-Context: tag=x,traceparent=", other): other,
		header("traceparent: ", someTrace) + "Ambassador-Context: tag=x\r\n":                         someTrace,
		"traceparent: cc-" + someTrace + "-" + someParent + "-01-a,tag=y\r\n":                        someTrace,
	} {
		conn := &tape{in: strings.NewReader("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n" + head + "\r\n")}
		r, _, err := ReadConnect(conn, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		h, err := r.Hints()
		if got := fmt.Sprintf("%x", h.Trace.TraceID); err != nil || got != want && (want != "" || h.Trace.IsValid()) || h.Tag == "y" {
			t.Errorf("%q: %s, %+v, %v; want %s", head, got, h, err, want)
		}
	}
	conn := &tape{in: strings.NewReader("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n" + header("traceparent: ", someTrace) + "\r\n")}
	if r, _, err := ReadConnect(conn, nil, false); err != nil || r.hints != "" {
		t.Errorf("without context: %q, %v", r.hints, err)
	}
}

// What is taken is valid, and can be written down again.
func FuzzParseTraceparent(f *testing.F) {
	for _, s := range []string{"00-" + someTrace + "-" + someParent + "-01", "ff-" + someTrace + "-" + someParent + "-01", "01-" + someTrace + "-" + someParent + "-00-x", "", "00-", strings.Repeat("-", 55), strings.Repeat("0", 55)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p := ParseTraceparent(text)
		if !p.IsValid() {
			if p != (Traceparent{}) {
				t.Errorf("%q: %+v is not valid", text, p)
			}
			return
		}
		flags := 0
		if p.Sampled {
			flags = 1
		}
		form := fmt.Sprintf("%x-%x-", p.TraceID, p.ParentID)
		if !strings.HasPrefix(text[3:], form) {
			t.Errorf("%q: %s", text, form)
		}
		if again := ParseTraceparent(fmt.Sprintf("00-%s%02x", form, flags)); again != p {
			t.Errorf("%q: %+v, then %+v", text, p, again)
		}
	})
}
