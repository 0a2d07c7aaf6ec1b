package config

import "testing"

func TestCheckHostPort(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"db.internal:5432", ""},
		{"[::1]:0", ""},
		{"db.internal:postgres", `"db.internal:postgres": the port must be a number; postgres is 5432: write db.internal:5432`},
		{"[::1]:HTTPS", `"[::1]:HTTPS": the port must be a number; HTTPS is 443: write [::1]:443`},
		{"db.internal:nonesuch", `"db.internal:nonesuch": "nonesuch" is no port; write a number from 1 to 65535`},
		{"db.internal:65536", `"db.internal:65536": "65536" is no port; write a number from 1 to 65535`},
		{"db.internal:-1", `"db.internal:-1": "-1" is no port; write a number from 1 to 65535`},
		{"db.internal:", `"db.internal:" has no port; write one behind the colon, like db.internal:5432`},
		{"db.internal", `"db.internal" is no HOST:PORT; write one like 127.0.0.1:5432 or [::1]:5432`},
		{"::1:5432", `"::1:5432" is no HOST:PORT; write one like 127.0.0.1:5432 or [::1]:5432`},
		{"a:1,b:2", `"a:1,b:2" is more than one address; give each one separately`},
		{"a,b:2", `"a,b:2" is more than one address; give each one separately`},
	} {
		got := ""
		if err := CheckHostPort(c.text); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.text, got, c.want)
		}
	}
}
