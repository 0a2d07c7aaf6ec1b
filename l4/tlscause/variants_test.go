package tlscause

import (
	"crypto/tls"
	"testing"
)

func TestVariantsAreBounded(t *testing.T) {
	var v Variants
	for range 2 * maxVariants {
		v.Of(Variant{Base: &tls.Config{}}, nil)
	}
	if len(v.made) > maxVariants {
		t.Errorf("%d variants are kept", len(v.made))
	}
}
