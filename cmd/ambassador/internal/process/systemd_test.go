package process

import (
	"testing"
	"testing/synctest"

	"ambassador/l4"
)

func TestStatusLine(t *testing.T) {
	for _, c := range []struct {
		r    l4.Readiness
		want string
	}{
		{l4.Readiness{Ready: true}, "STATUS=ready"},
		{l4.Readiness{Ready: true, Warnings: []string{"the reload failed"}}, "STATUS=ready: the reload failed"},
		{l4.Readiness{Waiting: []string{"a"}, Warnings: []string{"b"}}, "STATUS=not ready: a; b"},
		{l4.Readiness{Waiting: []string{"a: refused", "b: two\nlines"}}, "STATUS=not ready: a: refused; b: two lines"},
	} {
		if got := statusLine(c.r); got != c.want {
			t.Errorf("%+v: %q, want %q", c.r, got, c.want)
		}
	}
}

func TestNobodyIsTold(t *testing.T) {
	env := func(string) (string, bool) { return "", false }
	m := newServiceManager(env)
	m.ready(l4.Readiness{})
	m.attend(t.Context(), nil) // returns
	serviceManager{socket: "/absent"}.stopping()
	synctest.Test(t, func(t *testing.T) {
		if (m != serviceManager{}) {
			t.Errorf("without $NOTIFY_SOCKET there is %+v", m)
		}
	})
}
