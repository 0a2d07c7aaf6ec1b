package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// revocationList is one list and the certificates that it covers (RFC 5280, 5).
type revocationList struct {
	// Static after construction.
	list    *x509.RevocationList
	issuer  string               // as text
	serials map[string]time.Time // time of revocation, by serial number
	scope   scope
	fault   error // why the list cannot be used, with the fix; nil if it can

	mu     sync.Mutex
	signed map[string]bool // guarded by mu; whether this public key signed the list
}

func newRevocationList(l *x509.RevocationList) *revocationList {
	one := &revocationList{list: l, issuer: l.Issuer.String(), serials: make(map[string]time.Time, len(l.RevokedCertificateEntries)), signed: map[string]bool{}}
	for _, e := range l.RevokedCertificateEntries {
		one.serials[e.SerialNumber.String()] = e.RevocationTime
	}
	one.scope, one.fault = readExtensions(l)
	return one
}

// readExtensions reads the extensions that change the meaning of a list. It
// returns an error for a list that must not be used: RFC 5280, 5.2 and 5.3,
// forbids the use of a list with an unknown critical extension.
func readExtensions(l *x509.RevocationList) (s scope, err error) {
	if l.SignatureAlgorithm == x509.UnknownSignatureAlgorithm {
		return s, errors.New("the algorithm of its signature is not known; let the CA sign with RSA, ECDSA or Ed25519")
	}
	for _, e := range l.Extensions {
		switch {
		case e.Id.Equal(oidAuthorityKeyID), e.Id.Equal(oidCRLNumber):
		case e.Id.Equal(oidDeltaCRL):
			return s, errors.New("it is a delta list, which has only the changes since another; give the CA's complete list")
		case e.Id.Equal(oidIssuingDistributionPoint):
			if s, err = parseScope(e.Value); err != nil {
				return s, err
			}
		case e.Critical:
			return s, unknownExtension("extension", e.Id)
		}
	}
	for _, entry := range l.RevokedCertificateEntries {
		for _, e := range entry.Extensions {
			switch {
			case e.Id.Equal(oidReasonCode), e.Id.Equal(oidInvalidityDate):
			case e.Id.Equal(oidCertificateIssuer):
				return s, errIndirect
			case e.Critical:
				return s, unknownExtension("extension of an entry", e.Id)
			}
		}
	}
	return s, nil
}

func unknownExtension(what string, id asn1.ObjectIdentifier) error {
	return fmt.Errorf("it has a critical %s that is not known, %v; give a list of the CA without it", what, id)
}

// errIndirect is returned for a list in which one CA revokes certificates of
// others.
var errIndirect = errors.New("it is an indirect list, which has certificates of several CAs; give a list that is the CA's own")

// scope says which certificates of its CA a list covers. The zero value: all.
type scope struct {
	users, cas bool     // only those of end entities; only those of CAs
	points     [][]byte // only those that name one of these, each a GeneralName in DER; nil: all
}

// parseScope reads an issuingDistributionPoint (RFC 5280, 5.2.5).
func parseScope(der []byte) (s scope, err error) {
	all, err := elements(der)
	if err != nil {
		return s, damagedScope(err)
	}
	for _, e := range all {
		yes := len(e.Bytes) == 1 && e.Bytes[0] != 0
		switch {
		case e.Class != asn1.ClassContextSpecific:
			return s, damagedScope(errors.New("an element has no tag"))
		case e.Tag == 0:
			if s.points, err = pointNames(e); err != nil {
				return s, damagedScope(err)
			}
		case e.Tag == 1:
			s.users = yes
		case e.Tag == 2:
			s.cas = yes
		case e.Tag == 3:
			return s, errors.New("it has only certificates that were revoked for some of the reasons; give the CA's complete list")
		case e.Tag == 4 && yes:
			return s, errIndirect
		case e.Tag == 5 && yes:
			return s, errors.New("it has attribute certificates alone; give the CA's list of certificates")
		case e.Tag > 5:
			return s, damagedScope(fmt.Errorf("element %d is not known", e.Tag))
		}
	}
	if s.users && s.cas {
		return s, damagedScope(errors.New("it is for end entities alone, and for CAs alone"))
	}
	return s, nil
}

func damagedScope(err error) error {
	return fmt.Errorf("its issuing distribution point cannot be read (%w); let the CA make another list", err)
}

// pointNames returns the names of a distribution point, each in DER.
func pointNames(point asn1.RawValue) (out [][]byte, err error) {
	choice, err := inside(point)
	if err != nil {
		return nil, err
	}
	if len(choice) != 1 || choice[0].Class != asn1.ClassContextSpecific || choice[0].Tag != 0 {
		return nil, errors.New("its name is not a full one")
	}
	names, err := inside(choice[0])
	if err == nil && len(names) == 0 {
		err = errors.New("it has no name")
	}
	for _, n := range names {
		out = append(out, n.FullBytes)
	}
	return out, err
}

// namedPoints returns the distribution points that a certificate names. It leaves
// out those that have lists of other CAs, or lists for some reasons only (RFC
// 5280, 4.2.1.13).
func namedPoints(c *x509.Certificate) (out [][]byte) {
	for _, p := range extensionElements(c, oidCRLDistributionPoints) {
		fields, err := inside(p)
		if err != nil || len(fields) != 1 || fields[0].Tag != 0 {
			continue
		}
		if names, err := pointNames(fields[0]); err == nil {
			out = append(out, names...)
		}
	}
	return out
}

// misses says why the list does not cover a certificate of its CA; nil if it
// does.
func (s scope) misses(c *x509.Certificate) error {
	ca := c.BasicConstraintsValid && c.IsCA
	switch {
	case s.users && ca:
		return errors.New("it is for end entities alone; add the CA's list for CAs, or give its complete list")
	case s.cas && !ca:
		return errors.New("it is for certificates of CAs alone; add the CA's list for end entities, or give its complete list")
	case s.points == nil:
		return nil
	}
	named := namedPoints(c)
	for _, p := range s.points {
		if slices.ContainsFunc(named, func(n []byte) bool { return bytes.Equal(n, p) }) {
			return nil
		}
	}
	return errors.New("it is for certificates that name its distribution point; give the list that the certificate names, or the CA's complete list")
}

// inNameOf reports whether the list is issued in the CA's name, by any key. Two
// encodings of one name are equal.
func (l *revocationList) inNameOf(issuer *x509.Certificate) bool {
	return bytes.Equal(l.list.RawIssuer, issuer.RawSubject) || l.issuer == issuer.Subject.String()
}

// signedBy reports whether the CA's key signed the list. It caches the answers,
// of which there are as many as CAs with that name.
func (l *revocationList) signedBy(issuer *x509.Certificate) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := string(issuer.RawSubjectPublicKeyInfo)
	ok, known := l.signed[key]
	if !known {
		ok = issuer.CheckSignature(l.list.SignatureAlgorithm, l.list.RawTBSRevocationList, l.list.Signature) == nil
		l.signed[key] = ok
	}
	return ok
}

// unusable says why a list in the CA's name can be used at no time and for no
// certificate; nil if it can be used.
func (l *revocationList) unusable(issuer *x509.Certificate) error {
	switch {
	case l.fault != nil:
		return l.fault
	case !l.signedBy(issuer):
		return errors.New("it is signed by another key than that CA's; give the list that this CA has made")
	case issuer.KeyUsage != 0 && issuer.KeyUsage&x509.KeyUsageCRLSign == 0:
		return errors.New("the CA's certificate lacks the key usage cRLSign; give the CA a certificate with it")
	}
	return nil
}

// early returns an error if the list is not valid yet.
func (l *revocationList) early(now time.Time) error {
	if at := l.list.ThisUpdate; now.Before(at) {
		return fmt.Errorf("it is valid from %s on, in %s; is the clock right?", at.UTC().Format(time.RFC3339), age(at.Sub(now)))
	}
	return nil
}

// late returns an error if the list has expired.
func (l *revocationList) late(now time.Time) error {
	if at := l.list.NextUpdate; !at.IsZero() && now.After(at) {
		return fmt.Errorf("it expired at %s; put a new list in the crl file", at.UTC().Format(time.RFC3339))
	}
	return nil
}
