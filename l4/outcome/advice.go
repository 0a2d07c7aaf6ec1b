package outcome

import "slices"

// advised is a reason and what to do about it.
type advised struct {
	reason Reason
	text   string
}

// advice is what to do about each reason: one sentence that names the key, the
// flag or the command. Keys are those of the configuration file; the flags in
// brackets are the same for `ambassador forward`.
var advice = []advised{
	{OK, "Nothing is to be done: the attempt went well."},
	{Closed, "Nothing is to be done: both sides ended in good order; if it came too early, ask the side that closed first."},
	{DownstreamReset, "The client cut the connection: look into its own log, its timeouts and its pool's settings for why."},
	{UpstreamReset, "The upstream, or a firewall between, cut the connection: look into the server's log at that time, and let timeouts.idle of the listener be shorter than what anybody between allows for silence."},
	{DownstreamLost, "The client's host stopped answering keepalives for about 6 minutes: check that it is up and that no firewall between forgets silent connections."},
	{UpstreamLost, "The upstream's host stopped answering keepalives for about 6 minutes: check that it is up and that no firewall between forgets silent connections."},
	{Idle, "No byte moved for the listener's timeouts.idle: raise it (0s: none), or let the application keep idle connections for a shorter time."},
	{HalfCloseIdle, "One side had ended and the other moved no byte for the listener's timeouts.half_close_idle: raise it (0s: none) if answers may take that long."},
	{Lifetime, "The session reached the listener's timeouts.lifetime: raise it (0s: none), or let the application connect again."},
	{Drained, "The ambassador was being drained and the session was idle: connect again, to its successor."},
	{Shutdown, "The ambassador ended while the session was busy: if sessions need longer, raise drain.timeout, and the supervisor's patience (TimeoutStopSec=, terminationGracePeriodSeconds) above it."},
	{Killed, "It was ended on purpose, by `ambassador kill` or health.kill_on_down, as killed_by says: if the user or address there is not yours, check who can reach the admin socket (admin.listen, admin.token_file)."},
	{Limit, "Raise the limit that the cause names (limits.connections by default follows from the descriptor limit: ulimit -n, LimitNOFILE=), or find with `ambassador sessions` who holds so many (logins: which client sends wrong passwords)."},
	{LocalExhausted, "This host ran out of descriptors, memory or local ports: raise ulimit -n (LimitNOFILE=), widen net.ipv4.ip_local_port_range, or lower limits.connections; where the cause names SO_MARK, grant CAP_NET_ADMIN."},
	{Denied, "The client may not come in, or not go there: if it should, fix what the cause names (tls.principals or proxy_protocol.from of the listener, listeners.NAME.rules, --allow); else find who sent it here."},
	{NoRoute, "No rule of the listener matched what the client asked for: add one to listeners.NAME.rules (--allow); `ambassador check --explain 'dest=HOST:PORT'` says of each rule why not; after a reload, connect again."},
	{AuthFailed, "The client gave no user name and password, or wrong ones: check them against users_file of the listener (--users) with `htpasswd -vB FILE USER`, and that the client offers them (curl: --proxy-user)."},
	{SpecialAddress, "The destination is a loopback, private or other special address, which no rule opens: if it should be reached, name it in listeners.NAME.rules (--allow) by its exact host, or by an ip inside that range."},
	{Loop, "The destination is one of our own listeners, or our admin or metrics: let the client ask for what it really wants, or keep our own connections from being redirected (mark of the upstream, skuid in nftables)."},
	{BadGreeting, "The client did not begin as it must: by proxy_protocol, socks5 or http_connect of the listener, or by the upstream's starttls (--starttls) without TLS of its own (PostgreSQL: sslmode=disable or prefer); the cause says which."},
	{HandshakeTimeout, "The client did not say its part within the listener's timeouts.handshake: check that it speaks what the listener expects (socks5, http_connect, tls) or the upstream's starttls (--starttls), or raise the timeout."},
	{DownstreamTLS, "TLS with the client failed, as the cause says: check with `openssl s_client -connect LISTENER` what it is offered, and look into the client's own log."},
	{NoIdentity, "Our certificate cannot be used: `ambassador status` says why; fix the files under identities.NAME.files (--cert, --key), or what it says of the CA or the agent: no restart is needed."},
	{NoEndpoint, "No address of the upstream was left to try: see with `ambassador status` what became of each, and check upstreams.NAME.endpoints (--to); if a probe timed out at a server that is only slow, raise health.timeout."},
	{BreakerOpen, "The upstream failed so often in a row that its circuit breaker is open: fix what the cause says was seen last; `ambassador status` shows when the next attempt is due, and the first success closes it (upstreams.NAME.breaker)."},
	{DNS, "The upstream's name did not resolve: check its spelling in upstreams.NAME.endpoints (--to), and dns.servers or /etc/resolv.conf, with `getent hosts HOST`; if an API server of Kubernetes was asked, do what the cause says."},
	{Refused, "Nobody listens at that address, or its queue is full: check that the service is up, and host and port in upstreams.NAME.endpoints (--to), with `nc -vz HOST PORT`."},
	{Timeout, "The upstream did not answer in time: check with `nc -vz HOST PORT` that no firewall swallows it; if it is only slow, raise connect.timeout and connect.attempt_timeout (--connect-timeout, --attempt-timeout), and health.timeout if it is set."},
	{Unreachable, "There is no way to that address from this host: check upstreams.NAME.endpoints (--to), the route with `ip route get ADDRESS`, network policies, and for unix: the path and its permissions."},
	{StartTLSRefused, "The upstream does not go over to TLS in the protocol of starttls (--starttls): the cause says what it answered; enable TLS there (PostgreSQL: ssl = on), or set starttls to what it speaks."},
	{UpstreamTLS, "We do not accept the server's TLS, or it broke off, as the cause says: `openssl s_client -connect HOST:PORT` shows what it offers, and `ambassador help troubleshooting` has the known messages."},
	{UpstreamTLSRejected, "The server ended TLS with the alert in the cause: its log has its reason; what it verifies is our certificate (tls.identity, --cert), and tls.ca (--ca) has no part in that."},
	{UpstreamEarlyClose, "The upstream took the connection and ended it without a byte: check that tls and starttls (--starttls, --plain) are what it expects on this port; its log, or that of the balancer before it, has its reason."},
	{Probe, "Nothing is to be done: somebody connected and left without a byte, as health checks and port scanners do."},
	{Internal, "This is a fault of the ambassador: please report it, with the output of `ambassador version` and the log's lines about this id."},
}

// Reasons lists every reason that a Record of an ended session can have. The
// slice is the caller's.
func Reasons() []Reason {
	var out []Reason
	for _, a := range advice {
		if a.reason != OK {
			out = append(out, a.reason)
		}
	}
	return out
}

// Advice is one sentence about what a user can do where a session or an attempt
// ended for r. It is empty for a word that is not in the closed list.
func Advice(r Reason) string {
	i := slices.IndexFunc(advice, func(a advised) bool { return a.reason == r })
	if i < 0 {
		return ""
	}
	return advice[i].text
}
