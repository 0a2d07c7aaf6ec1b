package secrets

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"ambassador/certs"
	"ambassador/certs/files"
	"ambassador/certs/step"
	"ambassador/cmd/ambassador/internal/config"
)

// Check reads every file that the configuration names, and says what is
// wrong with each, at the place of its key. It also finds certificates and
// revocation lists that cannot be used now, with which a process starts nevertheless.
func Check(f *config.File) []config.Problem {
	problems := fileProblems(f)
	for _, id := range f.Identities {
		if len(id.Files.Paths()) == 0 {
			continue
		}
		cert, roots, err := files.Load(id.Files)
		if err != nil {
			continue // it is among the problems
		}
		if roots != nil {
			unusable, _ := roots.Revoked.Faults(time.Now())
			for _, text := range unusable {
				problems = append(problems, f.Problem("identities."+id.Name+".files.crl", fmt.Errorf("%s: %s", id.Files.CRL, text)))
			}
		}
		if cert == nil { // an identity that has only roots
			continue
		}
		if err := certs.Validity(cert.Leaf, time.Now()); err != nil {
			problems = append(problems, f.Problem("identities."+id.Name+"."+keyOf(id, nil), fmt.Errorf("%s: %w; get a new one", id.Files.Certificate(), err)))
		}
	}
	return problems
}

// fileProblems reads every file that the configuration names, and says why it
// cannot be used. Keys that are not there are mistakes of the text.
func fileProblems(f *config.File) []config.Problem {
	failed := map[string]error{}
	for _, id := range f.Identities {
		if err := checkIdentity(id); err != nil {
			failed[id.Name] = err
		}
	}
	return problemsOf(f, failed, failedRoots(f.RootFiles()), failedUsers(f.UsersPaths()))
}

// checkIdentity reads the identity's files. No host is contacted, and no token is spent.
func checkIdentity(id *config.IdentitySection) error {
	switch {
	case id.Step != nil:
		return checkStep(id)
	case id.Files.PKCS12 != "" || id.Files.Cert != "" && id.Files.Key != "" || id.Files.OnlyRoots():
		_, _, err := files.Load(id.Files)
		return err
	}
	return nil
}

// checkStep wants the token file where a token will be needed.
func checkStep(id *config.IdentitySection) error {
	if err := checkPassword(id); err != nil {
		return err
	}
	if _, err := step.CheckStorage(*id.Step); err != nil {
		return &keyError{"step.storage", err}
	}
	if id.Step.TokenFile == "" || step.Stored(*id.Step) {
		return nil
	}
	if _, err := certs.ReadSecret(id.Step.TokenFile); err != nil {
		return &keyError{"step.token_file", fmt.Errorf("%w; storage has no certificate yet, so that a one-time token is needed", err)}
	}
	return nil
}

// failedRoots reads the files of tls.ca.
func failedRoots(want []*config.IdentitySection) map[string]error {
	failed := map[string]error{}
	for _, ca := range want {
		if _, _, err := files.Load(ca.Files); err != nil {
			failed[ca.Name] = err
		}
	}
	return failed
}

// problemsOf are mistakes in files at the places of their keys: those of
// identities by name, those of roots and users by path, and admin.token_file.
func problemsOf(f *config.File, ids, roots, users map[string]error) []config.Problem {
	problems := identityProblems(f, ids)
	for _, u := range f.Upstreams {
		if err := roots[u.CAFile()]; err != nil {
			problems = append(problems, f.Problem("upstreams."+u.Name+".tls.ca", err))
		}
		if _, _, err := ProbeLogin(u.Health); err != nil {
			problems = append(problems, f.Problem("upstreams."+u.Name+".health.password_file", err))
		}
	}
	for _, l := range f.Listeners {
		if err := roots[l.CAFile()]; err != nil {
			problems = append(problems, f.Problem("listeners."+l.Name+".tls.ca", err))
		}
	}
	problems = append(problems, usersProblems(f, users)...)
	return append(problems, tokenProblems(f)...)
}

// tokenProblems is what is wrong with admin.token_file.
func tokenProblems(f *config.File) []config.Problem {
	if _, err := AdminToken(f); err != nil {
		return []config.Problem{f.Problem("admin.token_file", err)}
	}
	return nil
}

// flatten lists the errors that were joined.
func flatten(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}

// AdminToken is the content of admin.token_file; empty if there is none.
func AdminToken(f *config.File) (string, error) {
	if f.Admin.TokenFile == "" {
		return "", nil
	}
	b, err := certs.ReadSecret(f.Admin.TokenFile)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if len(token) < 16 {
		return "", fmt.Errorf("%s: %d characters are no token; put at least 16 random ones there: openssl rand -hex 16", f.Admin.TokenFile, len(token))
	}
	return token, nil
}

// keyError is a mistake found under a key of an identity.
type keyError struct {
	key string
	err error
}

func (e *keyError) Error() string { return e.err.Error() }

func (e *keyError) Unwrap() error { return e.err }

// checkPassword reads the password file of a provisioner, if there is one.
func checkPassword(id *config.IdentitySection) error {
	if id.Step.PasswordFile == "" {
		return nil
	}
	if _, err := certs.ReadSecret(id.Step.PasswordFile); err != nil {
		return &keyError{"step.password_file", files.Unreadable(id.Step.PasswordFile, err)}
	}
	return nil
}

// identityProblems are mistakes in the files of identities, at their places.
func identityProblems(f *config.File, failed map[string]error) []config.Problem {
	var problems []config.Problem
	for _, id := range f.Identities {
		if failed[id.Name] == nil {
			continue
		}
		for _, err := range flatten(failed[id.Name]) {
			problems = append(problems, f.Problem("identities."+id.Name+"."+keyOf(id, err), err))
		}
	}
	return problems
}

// keyOf is the key of an identity whose file is meant by err; that of the
// certificate if it is none in particular.
func keyOf(id *config.IdentitySection, err error) string {
	var at *keyError
	if errors.As(err, &at) {
		return at.key
	}
	certificate := "files.cert"
	if id.Files.PKCS12 != "" {
		certificate = "files.pkcs12"
	}
	var file *files.FileError
	if !errors.As(err, &file) {
		return certificate
	}
	switch file.Path {
	case id.Files.Certificate():
		return certificate
	case id.Files.Key:
		return "files.key"
	case id.Files.CA:
		return "files.ca"
	case id.Files.CRL:
		return "files.crl"
	case id.Files.PasswordFile:
		return "files.password_file"
	}
	return certificate
}

// failedUsers reads the users files.
func failedUsers(paths []string) map[string]error {
	failed := map[string]error{}
	for _, path := range paths {
		if _, _, err := readUsers(path); err != nil {
			failed[path] = err
		}
	}
	return failed
}

// usersProblems are mistakes in those files, at the places of their keys.
func usersProblems(f *config.File, failed map[string]error) (out []config.Problem) {
	for _, l := range f.Listeners {
		if failed[l.UsersFile()] == nil {
			continue
		}
		for _, err := range flatten(failed[l.UsersFile()]) {
			out = append(out, f.Problem("listeners."+l.Name+"."+l.RequestKey()+".users_file", err))
		}
	}
	return out
}

// ProbeLogin is whom a probe logs in as.
func ProbeLogin(h config.HealthSection) (user, password string, err error) {
	if h.PasswordFile == "" {
		return h.User, "", nil
	}
	secret, err := certs.ReadSecret(h.PasswordFile)
	return h.User, string(secret), err
}

// WithFileProblems adds the mistakes in the files that f names to those in its text,
// of which err tells. Nil f: the text could not be read.
func WithFileProblems(f *config.File, err error) error {
	var text *config.Error
	if f == nil || !errors.As(err, &text) {
		return err
	}
	return config.ErrorOf(append(text.Problems, fileProblems(f)...))
}

// Load reads a configuration. The error is a *config.Error with every mistake in its
// text, and beside those with every one in the files that it names. Where the text is
// good, prepare finds the mistakes in the files.
func Load(s *config.Source, env func(string) (string, bool)) (*config.File, error) {
	f, err := s.Load(env)
	if err != nil {
		return nil, WithFileProblems(f, err)
	}
	return f, nil
}

// LoadFile reads a configuration at a path, once.
func LoadFile(path string, env func(string) (string, bool)) (*config.File, error) {
	return Load(&config.Source{Path: path}, env)
}
