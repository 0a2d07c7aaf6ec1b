package admin

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/l4/peer"
)

// doKill ends a session. Its record names the client of the API.
func (a *admin) doKill(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	if !a.Kill(id, peerOf(r)) {
		return &api.Error{Status: http.StatusNotFound, Text: fmt.Sprintf("session %q: there is no live one of that id", id), Hint: "see GET /v1/sessions for their ids"}
	}
	replyJSON(w, http.StatusOK, api.Killed{Killed: id})
	return nil
}

// peerKey is the key of a request's connection in its context.
type peerKey struct{}

// withPeer keeps the connection for peerOf.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, conn)
}

// peerOf names the client of a request: its user on a unix socket, else its address.
func peerOf(r *http.Request) string {
	if uid, ok := userOf(r); ok {
		return fmt.Sprintf("uid %d", uid)
	}
	return r.RemoteAddr
}

// userOf is the user of a client on a unix socket.
func userOf(r *http.Request) (uid uint32, ok bool) {
	conn, _ := r.Context().Value(peerKey{}).(net.Conn)
	if gated, is := conn.(*gatedConn); is {
		conn = gated.Conn
	}
	return peer.UID(conn)
}
