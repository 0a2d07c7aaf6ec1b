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
		"use 1.2, or set unsafe_min_version: true", "use 1.2; lower ones need a configuration file: see --print-config", "pkcs12 has certificate and key in one file; remove it, or cert and key", "it has certificate and key in one file; remove it, or --cert and --key",
		"tls.server_name or tls.principals", "--server-name or --principal", "server_name", "--server-name").Replace(text)
}

// fileErrorWithFlags is withFlags for the errors of package files. These have paths,
// so it replaces whole phrases.
func fileErrorWithFlags(text string) string {
	return strings.NewReplacer("relative paths start at the configuration file's folder", "relative paths start at the folder where the command is run",
		" in password_file of an identity, files: {ca, password_file},", " in --password-file,", " in password_file", " in --password-file",
		"check password_file", "check --password-file", "as pkcs12 instead of cert and key", "as --pkcs12 instead of --cert and --key",
		"as pkcs12, or as ca if", "as --pkcs12, or as --ca if", "it as cert and key", "it as --cert and --key", "PEMFILE as cert and key, or as ca", "PEMFILE as --cert and --key, or as --ca").Replace(text)
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
