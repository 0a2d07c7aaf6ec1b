package secrets

import (
	"crypto/tls"
	"slices"
	"time"

	"ambassador/certs"
	"ambassador/certs/files"
	"ambassador/cmd/ambassador/internal/config"
)

// Faults are the reasons for which peers may reject the certificates in files, one line
// each. That of a certificate which cannot be used at all is a problem: see Check.
func Faults(f *config.File) (out []string) {
	for _, id := range f.Identities {
		if id.Files.Certificate() == "" {
			continue
		}
		cert, _, err := files.Load(id.Files)
		if err != nil {
			continue // it is among the problems
		}
		for _, text := range faultsOf(cert, f.Uses(id.Name), time.Now()) {
			out = append(out, "identities."+id.Name+"."+keyOf(id, nil)+": "+id.Files.Certificate()+": "+text)
		}
	}
	return out
}

// faultsOf are the faults of a certificate in its uses, each once.
func faultsOf(cert *tls.Certificate, uses []certs.Use, now time.Time) (out []string) {
	for _, use := range uses {
		for _, fault := range certs.Faults(cert, use, now) {
			if !slices.Contains(out, fault.String()) {
				out = append(out, fault.String())
			}
		}
	}
	return out
}

// judged is what decides of the warnings about an identity.
type judged struct {
	uses    []certs.Use
	secrets []string // the paths of its files that hold secrets
}

// judgedOf is that of each identity, by name.
func judgedOf(f *config.File) map[string]judged {
	out := map[string]judged{}
	for _, id := range f.Identities {
		out[id.Name] = judged{f.Uses(id.Name), id.Files.Secrets()}
	}
	return out
}

// warnings are what is wrong with an identity that can be used. Exposed is what is wrong
// with files, by path.
func (j judged) warnings(source *certs.Source, exposed map[string]string, now time.Time) (out []string) {
	if snap, err := source.Current(); err == nil {
		out = faultsOf(snap.Certificate, j.uses, now)
	}
	for _, path := range j.secrets {
		if text := exposed[path]; text != "" {
			out = append(out, text)
		}
	}
	return out
}
