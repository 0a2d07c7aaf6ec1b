package policy

import "testing"

// A client that is not known is not let in by a rule on uid, and not past one that denies.
func TestLostUIDFailsClosed(t *testing.T) {
	rules := NewRules([]Rule{{UIDs: []uint32{33}, Upstream: "theirs"}, {UIDs: []uint32{0}, Deny: "not root"}, {Upstream: "anybody"}})
	for _, test := range []struct {
		name string
		q    Query
		want string
	}{
		{"33", Query{UID: 33, HasUID: true}, "#1 allow "},
		{"root", Query{HasUID: true}, "#2 deny not root"},
		{"another", Query{UID: 7, HasUID: true}, "#3 allow "},
		{"of another host", Query{}, "#3 allow "},
		{"not found", Query{LostUID: true}, "#2 deny not root (the uid of the client was not found)"},
	} {
		d, _ := rules.Decide(&test.q, nil, false)
		if got := d.Rule + " " + string(d.Verdict) + " " + d.Why; got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	if !rules.WantUID() || NewRules([]Rule{{Upstream: "u"}}).WantUID() || (*Rules)(nil).WantUID() {
		t.Error("WantUID is not whether a rule has a uid")
	}
}
