package secrets

import (
	"os"
	"time"

	"ambassador/certs"
	"ambassador/certs/files"
	"ambassador/certs/step"
	"ambassador/cmd/ambassador/internal/config"
)

// Warnings that need a look at the files which the configuration names. Files that
// cannot be used are problems: see Check.

// Exposures are the files with secrets that every user of this host may read, one line
// each.
func Exposures(f *config.File) []string { return secretsWith(f, certs.Exposed) }

// Withheld are the files with secrets that root, who asks, may read and the service may
// not for which their folder is, one line each.
func Withheld(f *config.File) []string {
	if os.Geteuid() != 0 {
		return nil
	}
	return secretsWith(f, certs.Withheld)
}

// secretsWith returns the faults of the files with secrets, with their keys.
func secretsWith(f *config.File, fault func(path string) error) (out []string) {
	look := func(key, path string) {
		if path == "" {
			return
		}
		if err := fault(path); err != nil {
			out = append(out, key+": "+err.Error())
		}
	}
	look("admin.token_file", f.Admin.TokenFile)
	for _, id := range f.Identities {
		at := "identities." + id.Name + "."
		for _, path := range id.Files.Secrets() {
			look(at+keyOf(id, &files.FileError{Path: path}), path)
		}
		if id.Step != nil {
			look(at+"step.password_file", id.Step.PasswordFile)
			look(at+"step.token_file", id.Step.TokenFile)
		}
	}
	for _, u := range f.Upstreams {
		look("upstreams."+u.Name+".health.password_file", u.Health.PasswordFile)
	}
	for _, l := range f.Listeners {
		look("listeners."+l.Name+"."+l.RequestKey()+".users_file", l.UsersFile())
	}
	return out
}

// Unused is what is in files and has no effect, or less than one might expect, one
// line each. What runs logs it.
func Unused(f *config.File) (out []string) {
	for _, id := range f.Identities {
		at := "identities." + id.Name + "."
		if id.Step != nil {
			warnings, _ := step.CheckStorage(*id.Step) // its error is a problem
			for _, w := range warnings {
				out = append(out, at+"step.storage: "+w)
			}
		}
		out = append(out, unusedOf(id, at+keyOf(id, &files.FileError{Path: id.Files.Roots()}), at+"files.crl")...)
	}
	keys := map[string]string{} // of the files of tls.ca
	for _, l := range f.Listeners {
		keys[l.CAFile()] = "listeners." + l.Name + ".tls.ca"
	}
	for _, u := range f.Upstreams {
		keys[u.CAFile()] = "upstreams." + u.Name + ".tls.ca"
	}
	for _, ca := range f.RootFiles() {
		out = append(out, unusedOf(ca, keys[ca.Name], "")...)
	}
	return out
}

// unusedOf lists what is unused in an identity's roots and revocation lists, which are
// given by these keys.
func unusedOf(id *config.IdentitySection, rootsKey, listsKey string) (out []string) {
	if id.Files.Roots() == "" && id.Files.CRL == "" {
		return nil
	}
	_, roots, err := files.Load(id.Files)
	if err != nil || roots == nil { // the error is a problem
		return nil
	}
	for _, w := range roots.Unused {
		out = append(out, rootsKey+": "+id.Files.Roots()+": "+w)
	}
	_, partial := roots.Revoked.Faults(time.Now())
	for _, w := range partial {
		out = append(out, listsKey+": "+id.Files.CRL+": "+w)
	}
	return out
}
