package outcome

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSecondsInJSON(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0", 1500 * time.Millisecond: "1.5", 2 * time.Microsecond: "0.000002", 90 * time.Second: "90"} {
		b, err := json.Marshal(Seconds(d))
		if err != nil || string(b) != want {
			t.Errorf("%v in JSON is %s, %v; want %s", d, b, err, want)
		}
		var back Seconds
		if err := json.Unmarshal(b, &back); err != nil || time.Duration(back) != d {
			t.Errorf("%s reads back as %v, %v", b, back, err)
		}
	}
	var bad Seconds
	if err := json.Unmarshal([]byte(`"1s"`), &bad); err == nil {
		t.Error("a string passes as seconds")
	}
}

// fill sets each field of a record to something that is not zero, texts to their own.
func fill(t *testing.T) (r Record, texts []string) {
	t.Helper()
	v := reflect.ValueOf(&r).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString("the " + v.Type().Field(i).Name)
			texts = append(texts, f.String())
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(1000 + i))
		default:
			if f.Type() != reflect.TypeFor[time.Time]() {
				t.Fatalf("a field of kind %v", f.Kind())
			}
			f.Set(reflect.ValueOf(time.Unix(1e9, 0)))
		}
	}
	return r, texts
}

// Each field has its line in recordFields, which is about that field and has its key.
func TestRecordFields(t *testing.T) {
	r, _ := fill(t)
	v := reflect.ValueOf(&r).Elem()
	attrs := r.LogAttrs()
	if len(recordFields) != v.NumField() || len(attrs) != v.NumField() {
		t.Fatalf("%d fields, %d in recordFields, %d logged", v.NumField(), len(recordFields), len(attrs))
	}
	for i, f := range recordFields {
		key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		if f.key != key || attrs[i].Key != key {
			t.Errorf("field %d is %s in recordFields and %s in the log, want %s", i, f.key, attrs[i].Key, key)
		}
		switch field := v.Field(i); {
		case (field.Kind() == reflect.String) != (f.text != nil) || (f.text != nil) == (f.value != nil):
			t.Errorf("%s has not the one of text and value that its type wants", key)
		case f.text != nil:
			if reflect.ValueOf(f.text(&r)).Pointer() != field.Addr().Pointer() {
				t.Errorf("%s is the text of another field", key)
			}
		default:
			before := attrs[i].Value
			field.SetZero()
			if now, ok := f.value(&r); ok && now.Equal(before) {
				t.Errorf("%s is the value of another field", key)
			}
		}
	}
	if got := (&Record{}).LogAttrs(); len(got) != 6 {
		t.Errorf("an empty record has %v", got)
	}
}

// What is made for a session is copied, and what lives on anyway is not.
func TestCopyTexts(t *testing.T) {
	r, texts := fill(t)
	var copied []string
	r.CopyTexts(func(s string) string { copied = append(copied, s); return "copy" })
	shared := []string{"the Listener", "the Rule", "the Upstream", "the Stage", "the Reason", "the FirstClose"}
	var want []string
	for _, s := range texts {
		if !slices.Contains(shared, s) {
			want = append(want, s)
		}
	}
	if !slices.Equal(copied, want) || r.ID != "copy" || r.Tag != "copy" || r.Listener != "the Listener" {
		t.Errorf("copied %q, want %q; %+v", copied, want, r)
	}
}
