package l4

import (
	"cmp"
	"context"

	"ambassador/l4/preface"
	"ambassador/l4/request"
	"ambassador/l4/task"
	"ambassador/l4/upstream"
)

// credentials returns the function that checks the client's user and password; nil if
// no login is required.
func (s *session) credentials(ctx context.Context) preface.Credentials {
	if s.route.cfg.Users == nil {
		return nil
	}
	client := s.downstream.source()
	return func(user, password string) error {
		users := cmp.Or(s.route.listener.route.Load().cfg.Users, s.route.cfg.Users)
		s.downstream.users = users
		if users.Remembered(user, password) {
			return nil
		}
		task.Leave(ctx)
		ok, err := users.Verify(ctx, client, user, password)
		return request.LoginError(user, ok, err)
	}
}

// narrow returns c with the limits that the hints ask for. They must not exceed those
// of c.
func narrow(c upstream.ConnectConfig, hints preface.Hints) (upstream.ConnectConfig, error) {
	if err := hints.Within(cmp.Or(c.Attempts, upstream.DefaultAttempts), cmp.Or(c.Timeout, upstream.DefaultConnectTimeout)); err != nil {
		return c, err
	}
	c.Attempts, c.Timeout = cmp.Or(hints.Attempts, c.Attempts), cmp.Or(hints.Timeout, c.Timeout)
	return c, nil
}
