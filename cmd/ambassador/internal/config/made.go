package config

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
)

// FromFlags reads a configuration that was made of a command's flags. Problems are
// the mistakes that were found before, flagOf is the flag that a key comes from. The
// error is a *Error whose problems name flags; beside it the File has what could
// be read.
func FromFlags(command, text string, problems []Problem, flagOf func(path string) string) (*File, error) {
	d := &decoder{file: command, env: func(string) (string, bool) { return "", false }, flagOf: flagOf}
	f, err := d.decodeFile("/", []byte(text))
	var config *Error
	switch {
	case errors.As(err, &config):
		for _, p := range config.Problems {
			if flag := flagOf(p.Path); !mentions(problems, flag) {
				problems = append(problems, Problem{File: flag, Text: withFlags(p.Text)})
			}
		}
	case err != nil:
		return nil, err
	}
	if len(problems) > 0 {
		return f, &Error{problems}
	}
	return f, nil
}

func mentions(problems []Problem, flag string) bool {
	return slices.ContainsFunc(problems, func(p Problem) bool { return p.File == flag })
}

// withFlags puts flags where a text names keys of the file.
func withFlags(text string) string {
	return strings.NewReplacer("unsafe_plaintext_listen: true", "--unsafe-plaintext-listen", "with unsafe_plaintext_listen", "with --unsafe-plaintext-listen",
		"tls.server_name or tls.principals", "--server-name or --principal", "server_name", "--server-name").Replace(text)
}

// Quote is a text as a YAML scalar that nothing is expanded in. JSON's strings
// are YAML's.
func Quote(s string) string {
	b, err := json.Marshal(strings.ReplaceAll(s, "${", "$${"))
	if err != nil {
		return `""`
	}
	return string(b)
}
