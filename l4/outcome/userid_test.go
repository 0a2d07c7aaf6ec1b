package outcome

import (
	"encoding/json"
	"strings"
	"testing"
)

// Root is user 0, and is not the same as nobody known.
func TestUserIDInJSON(t *testing.T) {
	for want, r := range map[string]Record{`"uid":0,`: {UID: UserIDOf(0), PID: 1}, `"uid":4294967295,`: {UID: UserIDOf(1<<32 - 1), PID: 1}, "": {}} {
		b, err := json.Marshal(r)
		if err != nil || !strings.Contains(string(b), want) || want == "" && strings.Contains(string(b), "uid") {
			t.Errorf("%s, %v; want %q in it", b, err, want)
		}
		var back Record
		if err := json.Unmarshal(b, &back); err != nil || back.UID != r.UID {
			t.Errorf("%s reads back as %q, %v", b, back.UID, err)
		}
	}
	var u UserID
	for _, bad := range []string{`"root"`, "-1", "4294967296", "1.5"} {
		if err := json.Unmarshal([]byte(bad), &u); err == nil {
			t.Errorf("%s passes as a user id", bad)
		}
	}
}
