package step

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"slices"
	"time"
)

// A root in storage is trusted if it has the configured fingerprint or a voucher
// lists it. The others are used only when the CA serves them again.

// voucher proves that the CA gave us roots: an identity of ours, whose chain
// leads to a trusted root, has signed a list of them. This relies on the CA
// issuing certificates with exactly our names only to us.
type voucher struct {
	Roots     [][]byte `json:"roots"`     // the SHA-256 of each
	Chain     [][]byte `json:"chain"`     // of the identity, in DER: leaf first, the root last
	Signature []byte   `json:"signature"` // by the leaf's key
}

const (
	voucherBlock = "AMBASSADOR VOUCHER" // in roots.pem; the content is JSON
	// voucherPrefix begins the signed text. It is longer than the part of a TLS
	// signature's input that an attacker can choose, and no JWS begins like it.
	voucherPrefix = "ambassador: the certificate authority at the end of this chain has given us these roots over TLS\x00"
)

type digest = [sha256.Size]byte

// trusted is a set of roots, by the SHA-256 of each.
type trusted map[digest]bool

// pinned has the root with the configured fingerprint.
func (c Config) pinned() trusted {
	var d digest
	hex.Decode(d[:], []byte(c.Fingerprint)) // the caller has checked it
	return trusted{d: true}
}

func (t trusted) has(root *x509.Certificate) bool { return t[sha256.Sum256(root.Raw)] }

// sort separates trusted roots from others.
func (t trusted) sort(roots []*x509.Certificate) (in, out []*x509.Certificate) {
	for _, r := range roots {
		if t.has(r) {
			in = append(in, r)
		} else {
			out = append(out, r)
		}
	}
	return in, out
}

// take adds the roots of a voucher if it is valid for us, and returns the root
// that its chain leads to; else nil.
func (t trusted) take(c Config, v voucher) *x509.Certificate {
	chain, err := parseDER(v.Chain)
	whole := !slices.ContainsFunc(v.Roots, func(r []byte) bool { return len(r) != len(digest{}) })
	if err != nil || len(chain) < 2 || !whole {
		return nil
	}
	leaf, root := chain[0], chain[len(chain)-1]
	if !t.has(root) || c.wants(leaf) != nil || !leadsTo(chain[:len(chain)-1], root) ||
		leaf.CheckSignature(x509.ECDSAWithSHA256, v.signed(), v.Signature) != nil {
		return nil
	}
	for _, r := range v.Roots {
		t[digest(r)] = true
	}
	return root
}

func (v voucher) signed() []byte { return append([]byte(voucherPrefix), bytes.Join(v.Roots, nil)...) }

// vouch makes the vouchers that are stored with roots: none if all of them have
// the fingerprint. It keeps as many of the stored vouchers as the root of our
// identity needs to be trusted. If that root is not trusted, it adds none.
func (c Config) vouch(identity *tls.Certificate, roots []*x509.Certificate, kept stored) []voucher {
	trust, old := c.pinned(), kept.vouchers
	if _, others := trust.sort(roots); len(others) == 0 {
		return nil
	}
	anchors := slices.Concat(roots, kept.anchors)
	for n := 0; ; n++ {
		if v, ok := newVoucher(identity, roots, anchors, trust); ok {
			return append(slices.Clip(old[:n]), v)
		}
		if n == len(old) || trust.take(c, old[n]) == nil {
			return old[:n]
		}
	}
}

// newVoucher signs a list of roots, if the identity leads to a trusted anchor.
func newVoucher(identity *tls.Certificate, roots, anchors []*x509.Certificate, trust trusted) (v voucher, ok bool) {
	if identity == nil {
		return v, false
	}
	chain, err := parseDER(identity.Certificate)
	signer, can := identity.PrivateKey.(crypto.Signer)
	i := slices.IndexFunc(anchors, func(a *x509.Certificate) bool { return trust.has(a) && leadsTo(chain, a) })
	if err != nil || !can || i < 0 {
		return v, false
	}
	v.Chain = append(slices.Clone(identity.Certificate), anchors[i].Raw)
	for _, r := range roots {
		sum := sha256.Sum256(r.Raw)
		v.Roots = append(v.Roots, sum[:])
	}
	sum := sha256.Sum256(v.signed())
	v.Signature, err = signer.Sign(rand.Reader, sum[:], crypto.SHA256)
	return v, err == nil
}

// leadsTo reports whether the chain, leaf first, ends at the root. It verifies at
// the first moment at which all certificates were valid: later expiry does not
// matter.
func leadsTo(chain []*x509.Certificate, root *x509.Certificate) bool {
	if len(chain) == 0 {
		return false
	}
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	opts.Roots.AddCert(root)
	opts.CurrentTime = root.NotBefore
	for _, c := range chain {
		if c.NotBefore.After(opts.CurrentTime) {
			opts.CurrentTime = c.NotBefore
		}
		opts.Intermediates.AddCert(c)
	}
	opts.CurrentTime = opts.CurrentTime.Add(time.Millisecond) // never the zero time, which means now
	_, err := chain[0].Verify(opts)
	return err == nil
}

func parseDER(ders [][]byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// encodeVouchers is the inverse of parseVouchers.
func encodeVouchers(all []voucher) (out []byte, err error) {
	for _, v := range all {
		text, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: voucherBlock, Bytes: text})...)
	}
	return out, nil
}

// parseVouchers skips blocks that are no voucher.
func parseVouchers(b []byte) (out []voucher) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return out
		}
		var v voucher
		if block.Type == voucherBlock && json.Unmarshal(block.Bytes, &v) == nil {
			out = append(out, v)
		}
	}
}
