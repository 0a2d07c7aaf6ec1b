package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"ambassador/cmd/ambassador/internal/config"
)

// listenFlags configure the one listener of a command that needs no file: `forward` and
// `socks5`.
type listenFlags struct {
	listen                []string
	idle                  time.Duration
	socketMode            string
	unsafePlaintextListen bool
}

func (lf *listenFlags) bind(flags *pflag.FlagSet) {
	flags.StringArrayVar(&lf.listen, "listen", nil, "where the application connects: HOST:PORT, PORT, %INTERFACE:PORT or unix:/path (required; may be repeated)")
	flags.DurationVar(&lf.idle, "idle", 0, "end sessions that move no byte for so long (default: never)")
	flags.StringVar(&lf.socketMode, "socket-mode", "", "permissions of the socket of --listen unix:/path (default 0600)")
	flags.BoolVar(&lf.unsafePlaintextListen, "unsafe-plaintext-listen", false, "allow --listen on an address that others can reach")
}

// lines returns the listener's keys as YAML.
func (lf *listenFlags) lines() (out []string) {
	switch addresses := quoteAll(absoluteSockets(lf.listen)); len(lf.listen) {
	case 0:
	case 1:
		out = append(out, "listen: "+addresses)
	default:
		out = append(out, "listen: ["+addresses+"]")
	}
	if lf.socketMode != "" {
		out = append(out, "socket: {mode: "+config.Quote(lf.socketMode)+"}")
	}
	if lf.unsafePlaintextListen {
		out = append(out, "unsafe_plaintext_listen: true")
	}
	if lf.idle != 0 {
		out = append(out, fmt.Sprintf("timeouts: {idle: %s}", lf.idle))
	}
	return out
}

// flagOf is the flag that sets a key of the listener; empty if none of these flags
// does.
func (lf *listenFlags) flagOf(path string) string {
	rest, ok := strings.CutPrefix(path, "listeners.")
	_, key, hasKey := strings.Cut(rest, ".")
	switch {
	case !ok: // not a key of the listener
	case !hasKey || strings.HasPrefix(key, "listen"):
		return "--listen"
	case strings.HasPrefix(key, "socket"):
		return "--socket-mode"
	case key == "timeouts.idle":
		return "--idle"
	case key == "unsafe_plaintext_listen":
		return "--unsafe-plaintext-listen"
	}
	return ""
}

func absolute(path string) string {
	if path == "" {
		return ""
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	return abs
}

// absoluteSockets makes the paths of unix sockets absolute.
func absoluteSockets(addresses []string) (out []string) {
	for _, a := range addresses {
		if path, ok := strings.CutPrefix(a, "unix:"); ok && !strings.HasPrefix(path, "@") {
			a = "unix:" + absolute(path)
		}
		out = append(out, a)
	}
	return out
}

func quoteAll(all []string) string {
	var out []string
	for _, s := range all {
		out = append(out, config.Quote(s))
	}
	return strings.Join(out, ", ")
}
