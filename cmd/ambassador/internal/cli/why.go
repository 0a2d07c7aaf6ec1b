package cli

import (
	"fmt"
	"io"
	"time"

	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/outcome"
)

// whySessions is how many sessions of one client `why` tells about: a port is
// used again sooner or later, and the newest are meant.
const whySessions = 5

// story is a session with what to do about its ending.
type story struct {
	outcome.Record
	Live   bool   `json:"live"`
	Advice string `json:"advice"`
}

func newStory(r outcome.Record) story {
	s := story{Record: r, Live: r.Reason == "", Advice: outcome.Advice(r.Reason)}
	if s.Live {
		s.Advice = liveAdvice(r.Stage)
	}
	return s
}

// liveAdvice says what a live session waits for, and what bounds that.
func liveAdvice(s outcome.Stage) string {
	switch s {
	case outcome.StageRelay:
		return "Nothing has gone wrong so far: bytes pass as they come; timeouts.idle and timeouts.lifetime of the listener bound it, if set."
	case outcome.StageGreet:
		return "It waits for the client: for its PROXY header, its TLS handshake or its request, for timeouts.handshake of the listener at most."
	case outcome.StageDialogue:
		return "It waits for the client's part of the protocol, for timeouts.handshake of the listener at most."
	}
	return "It is being connected, for connect.timeout of the upstream at most: ask again afterwards."
}

// stories puts the live sessions, which are the newer ones, before the ended
// ones, and keeps the newest. live has the oldest first, ended the newest.
func stories(live, ended []outcome.Record) []story {
	out := []story{}
	for i := len(live) - 1; i >= 0 && len(out) < whySessions; i-- {
		out = append(out, newStory(live[i]))
	}
	for i := 0; i < len(ended) && len(out) < whySessions; i++ {
		out = append(out, newStory(ended[i]))
	}
	return out
}

// writeStories tells them for people. total is how many there were.
func writeStories(w io.Writer, all []story, total int, now time.Time) error {
	p := &page{output.Report{Now: now}}
	for i, s := range all {
		if i > 0 {
			p.Linef("")
		}
		p.story(s)
	}
	if more := total - len(all); more > 0 {
		p.Linef("")
		p.Linef("%s of this client not shown; `ambassador sessions --recent` lists all.", output.Plural(more, "older session"))
	}
	_, err := io.WriteString(w, p.String())
	return err
}

func writeStoriesJSON(w io.Writer, all []story) error {
	return output.WriteJSON(w, map[string]any{"sessions": all})
}

func (p *page) story(s story) {
	if s.Live {
		p.Linef("session %s: still open, in stage %s", s.ID, s.Stage)
	} else {
		p.Linef("session %s: %s, in stage %s", s.ID, s.Reason, s.Stage)
	}
	rows := [][2]string{
		{"start", p.When(s.Start) + " (" + output.Age(p.Now.Sub(s.Start)) + " ago)"},
		{"client", s.who()},
		{"destination", s.Destination},
		{"rule", s.Rule},
		{"tag", s.Tag},
		{"upstream", s.whereTo()},
		{"attempts", fmt.Sprint(s.Attempts)},
		{"cause", s.Cause},
		{"limit", s.Limit},
		{"retry in", s.retryIn()},
		{"first close", s.FirstClose},
		{"bytes", output.Bytes(s.BytesUp) + " up, " + output.Bytes(s.BytesDown) + " down" + s.cut()},
		{"time", s.times()},
	}
	for _, r := range rows {
		if r[1] != "" {
			p.Linef("  %-12s %s", r[0], r[1])
		}
	}
	p.Linef("%s", s.Advice)
}

func (s story) who() string {
	text := s.Client + " on listener " + s.Listener
	for _, part := range [][2]string{{"user", s.User}, {"principal", s.Principal}} {
		if part[1] != "" {
			text += ", " + part[0] + " " + part[1]
		}
	}
	return text
}

func (s story) whereTo() string {
	text := s.Upstream
	if text == "" {
		return "none chosen"
	}
	if s.Endpoint != "" {
		text += ", endpoint " + s.Endpoint
	}
	if s.Address != "" && s.Address != s.Endpoint {
		text += ", address " + s.Address
	}
	return text
}

func (s story) retryIn() string {
	if s.RetryIn == 0 {
		return ""
	}
	return s.RetryIn.String() + " after its end"
}

func (s story) cut() string {
	if s.Truncated {
		return "; a TLS side ended without close_notify, so its last bytes may be missing"
	}
	return ""
}

func (s story) times() string {
	text := "ended after " + s.Duration.String()
	if s.Live {
		text = "open for " + s.Duration.String()
	}
	if s.Establish > 0 {
		return text + ", connected after " + s.Establish.String()
	}
	return text + ", never connected through"
}
