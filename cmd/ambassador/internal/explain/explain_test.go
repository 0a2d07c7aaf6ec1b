package explain

import (
	"bytes"
	"reflect"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

func FuzzQuestion(f *testing.F) {
	f.Add("user=batch dest=db.internal:5432 client=10.1.2.3 uid=3 principal=dns:a sni=a.b listener=egress addr=::1,10.0.0.7")
	f.Add("dest=[::ffff:10.0.0.1]:1")
	f.Add("dest=:0 = a=")
	f.Fuzz(func(t *testing.T, text string) {
		q, err := parseQuestion(text)
		if err != nil {
			return
		}
		if q.has["dest"] && (q.query.Port == 0 || q.query.Host == "" && !q.query.Addr.IsValid() || q.query.Host != "" && q.query.Addr.IsValid()) {
			t.Errorf("%q is about %+v", text, q.query)
		}
	})
}

func TestExplanationsCanBeSeen(t *testing.T) {
	var e Explanation
	cmdtest.Fill(reflect.ValueOf(&e).Elem(), cmdtest.Evil)
	var out bytes.Buffer
	if err := e.Write(&out, &Question{text: cmdtest.Evil}); err != nil || out.Len() == 0 {
		t.Errorf("%v, %q", err, &out)
	}
	cmdtest.MustBeVisible(t, "check --explain", out.String())
}
