package certs

import (
	"bytes"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Use is what our certificate is for.
type Use int

// The uses of a certificate.
const (
	ForServers Use = iota // we are the client, and servers verify it
	ForClients            // we are the server, and clients verify it
)

// extended returns the extended key usage that peers want, and its name.
func (u Use) extended() (x509.ExtKeyUsage, string) {
	if u == ForServers {
		return theClient.usage()
	}
	return theServer.usage()
}

// verifier is the role of the peers.
func (u Use) verifier() string {
	if u == ForServers {
		return "servers"
	}
	return "clients"
}

// Fault is something in our certificate or its chain for which peers may reject it.
type Fault struct{ What, Fix string }

// String is "WHAT; FIX".
func (f Fault) String() string { return f.What + "; " + f.Fix }

// Faults returns why peers may reject our certificate at now, the gravest first. It
// judges only what does not depend on the peer's roots, and not the
// validity of the leaf: see Validity.
func Faults(cert *tls.Certificate, use Use, now time.Time) (out []Fault) {
	if cert == nil || cert.Leaf == nil {
		return nil
	}
	chain := []*x509.Certificate{cert.Leaf}
	for _, der := range cert.Certificate[min(1, len(cert.Certificate)):] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			out = append(out, Fault{fmt.Sprintf("a CA certificate in its chain cannot be read (%v)", err), "remove it, or get the chain from the CA again"})
			continue
		}
		chain = append(chain, c)
	}
	out = append(out, leafFaults(cert.Leaf, use)...)
	for i, c := range chain {
		out = append(out, chainFaults(chain, i, use, now)...)
		if isInsecure(c.SignatureAlgorithm) && !bytes.Equal(c.RawSubject, c.RawIssuer) {
			out = append(out, Fault{fmt.Sprintf("%s is signed with %v, which most %s reject", ours(c, i), c.SignatureAlgorithm, use.verifier()), "let the CA issue it anew with SHA-256 or better"})
		}
	}
	return out
}

// ours names a certificate of our chain in a message.
func ours(c *x509.Certificate, i int) string {
	if i == 0 {
		return "it"
	}
	return fmt.Sprintf("the CA certificate %q in its chain", subject(c))
}

// leafFaults judges what the leaf is for, and its key.
func leafFaults(leaf *x509.Certificate, use Use) (out []Fault) {
	if wanted, name := use.extended(); !permits(leaf, wanted) {
		out = append(out, Fault{fmt.Sprintf("it is not one for %ss: its extended key usage lacks %s, and most %s reject it", use.role(), name, use.verifier()), "issue it with extendedKeyUsage=" + name})
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		out = append(out, Fault{fmt.Sprintf("its key usage lacks digitalSignature, and some %s reject it", use.verifier()), "issue it with keyUsage=digitalSignature"})
	}
	if key, ok := leaf.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() < minRSA {
		out = append(out, Fault{fmt.Sprintf("its RSA key has only %d bits, and most %s reject it", key.N.BitLen(), use.verifier()), fmt.Sprintf("make a key of %d bits or more, or an ECDSA one", minRSA)})
	}
	return out
}

// minRSA is the size below which OpenSSL at its security level 2, which is Debian's
// default, rejects an RSA key.
const minRSA = 2048

// role is ours.
func (u Use) role() string {
	if u == ForServers {
		return "client"
	}
	return "server"
}

// permits reports whether the extended key usages of c include the wanted one; without
// any, they do.
func permits(c *x509.Certificate, wanted x509.ExtKeyUsage) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 ||
		slices.Contains(c.ExtKeyUsage, wanted) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// chainFaults judges the CA certificate at i of our chain. At 0 it judges whether the
// chain has the leaf's CA.
func chainFaults(chain []*x509.Certificate, i int, use Use, now time.Time) (out []Fault) {
	c := chain[i]
	if i == 0 {
		if len(chain) > 1 && !slices.ContainsFunc(chain[1:], func(ca *x509.Certificate) bool {
			return c.CheckSignatureFrom(ca) == nil || isInsecure(c.SignatureAlgorithm)
		}) {
			out = append(out, Fault{"none of the CA certificates in its chain has issued it", fmt.Sprintf("put the certificate of %q behind it", short(c.Issuer.String()))})
		}
		return out
	}
	if err := Validity(c, now); err != nil {
		out = append(out, Fault{fmt.Sprintf("%s cannot be used: %v", ours(c, i), err), "put that CA's new certificate into the chain"})
	}
	if !c.BasicConstraintsValid || !c.IsCA {
		out = append(out, Fault{fmt.Sprintf("%s may not sign others: %s", ours(c, i), notCA(c)), "remove it, or put the right one there"})
	}
	if wanted, name := use.extended(); !permits(c, wanted) {
		out = append(out, Fault{fmt.Sprintf("%s permits no certificates for %ss: its extended key usage lacks %s", ours(c, i), use.role(), name), "use a certificate of another CA"})
	}
	return out
}
