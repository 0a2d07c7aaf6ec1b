package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/program"
)

// MaxSize bounds a configuration, in bytes: about 50,000 rules. Kubernetes
// keeps at most 1 MiB in a ConfigMap.
const MaxSize = 4 << 20

// Source is where a configuration is read from: at first a regular file or a
// pipe, from then on a regular file. It is used by one goroutine at a time.
type Source struct {
	Path string
	// First is the text that the first read gives instead of the file; nil: there is none.
	First []byte
	used  bool // it has been read
}

// read gives the text.
func (s *Source) read() ([]byte, error) {
	first := !s.used
	s.used = true
	switch {
	case first && s.First != nil:
		return s.First, nil
	case !program.IsPipe(s.Path):
		return certs.ReadGuarded(s.Path, MaxSize)
	case first:
		return program.ReadPipe(s.Path, MaxSize, program.PipeTimeout)
	}
	return nil, errors.New("a pipe cannot be read again; to be able to reload, start with -c and a regular file")
}

// folder is where relative paths start. Pipes and what else is in /dev have no folder
// of their own.
func (s *Source) folder() (string, error) {
	if program.IsPipe(s.Path) || strings.HasPrefix(s.Path, "/dev/") {
		return os.Getwd()
	}
	return filepath.Abs(filepath.Dir(s.Path))
}

// Find is the configuration file to use: the given one, or the first
// default that is there.
func Find(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	defaults := []string{"ambassador.yaml", "/etc/ambassador/ambassador.yaml"}
	for _, path := range defaults {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no configuration file: neither ./%s nor %s is there; name one with -c FILE, or use `ambassador forward` or `ambassador test --to HOST:PORT`, which need none", defaults[0], defaults[1])
}
