package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// statusError is an answer of the API server that is not 200.
type statusError struct {
	code    int
	message string        // what the server says; printable, may be empty
	wait    time.Duration // Retry-After, at most maxRetryAfter
}

const (
	maxStatus     = 64 << 10        // bytes of an answer that is read for its message
	statusTimeout = 2 * time.Second // what is waited for these bytes
	maxMessage    = 400
	maxRetryAfter = time.Minute
)

func (e *statusError) Error() string {
	text := fmt.Sprintf("the API server answers %d %s", e.code, http.StatusText(e.code))
	if e.message != "" {
		text += ": " + e.message
	}
	return text
}

// newStatusError reads the message of an answer, for statusTimeout at most.
func newStatusError(r *http.Response) *statusError {
	late := time.AfterFunc(statusTimeout, func() { r.Body.Close() })
	defer late.Stop()
	body, _ := io.ReadAll(io.LimitReader(r.Body, maxStatus)) // what there is will do
	e := &statusError{code: r.StatusCode, message: messageOf(body)}
	if n, err := strconv.Atoi(r.Header.Get("Retry-After")); err == nil && n > 0 {
		e.wait = time.Duration(min(n, int(maxRetryAfter/time.Second))) * time.Second
	}
	return e
}

// messageOf returns the message of a Status object, bounded and printable.
func messageOf(body []byte) string {
	var status struct{ Message string }
	if json.Unmarshal(body, &status) != nil {
		return ""
	}
	return printable(status.Message, maxMessage)
}

// printable replaces control characters, and cuts what is longer than most bytes.
func printable(s string, most int) string {
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

// isGone reports whether the server has forgotten the position of a watch.
func isGone(err error) bool {
	var status *statusError
	return errors.As(err, &status) && status.code == http.StatusGone
}

// needs is what a feed asks of the API server, for the Role in an error.
type needs struct {
	namespace string
	what      string   // "Service default/db"
	resources []string // as in the Role; all that the feeds of this object need
	name      string   // the only object; empty: all of the namespace
	role      string   // the name of the Role
}

// explain says what an error means, and how to fix it.
func (n needs) explain(err error) error {
	var status *statusError
	if !errors.As(err, &status) {
		return err
	}
	switch status.code {
	case http.StatusUnauthorized:
		return fmt.Errorf("%w; it does not accept our token: does the service account still exist?", err)
	case http.StatusForbidden:
		return errors.New(n.forbidden(status.message))
	case http.StatusNotFound:
		return fmt.Errorf("%w; EndpointSlices need Kubernetes 1.21 or later", err)
	}
	return err
}

// userInMessage is the user whom the API server refuses. It becomes part of a command
// that a person copies: no character of it may mean something to a shell.
var userInMessage = regexp.MustCompile(`User "([A-Za-z0-9:._@/#-]{1,253})"`)

// forbidden says which Role is missing. Message is the server's.
func (n needs) forbidden(message string) string {
	who, subject := "us", "--serviceaccount=NAMESPACE:NAME"
	if found := userInMessage.FindStringSubmatch(message); found != nil {
		who, subject = found[1], "--user="+found[1]
		if account, ok := strings.CutPrefix(who, "system:serviceaccount:"); ok {
			subject = "--serviceaccount=" + account
		}
	}
	verbs, only := "list,watch", ""
	if n.name != "" {
		verbs, only = "get,list,watch", " --resource-name="+n.name
	}
	resources := strings.Join(n.resources, ",")
	return fmt.Sprintf("the API server does not allow %s to %s %s in namespace %s, which following %s needs; allow it: "+
		"kubectl create role %s --namespace=%[4]s --verb=%[2]s --resource=%[3]s%[7]s && kubectl create rolebinding %[6]s --namespace=%[4]s --role=%[6]s %[8]s "+
		"(as YAML: ambassador print kubernetes/rbac)",
		who, verbs, resources, n.namespace, n.what, n.role, only, subject)
}
