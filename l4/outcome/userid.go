package outcome

import (
	"fmt"
	"strconv"
)

// UserID is the numeric user id of a process, as UserIDOf makes it. Zero is not known:
// user 0 is root. In JSON it is the id, a number.
type UserID int64

// UserIDOf is the UserID of a user id.
func UserIDOf(uid uint32) UserID { return UserID(uid) + 1 }

// String is the user id; empty if it is not known.
func (u UserID) String() string {
	if u == 0 {
		return ""
	}
	return strconv.FormatInt(int64(u)-1, 10)
}

// MarshalJSON writes the user id. A field needs omitzero: there is no id to write for
// zero.
func (u UserID) MarshalJSON() ([]byte, error) {
	if u == 0 {
		return []byte("null"), nil
	}
	return []byte(u.String()), nil
}

// UnmarshalJSON reads what MarshalJSON writes.
func (u *UserID) UnmarshalJSON(b []byte) error {
	*u = 0
	if string(b) == "null" {
		return nil
	}
	n, err := strconv.ParseUint(string(b), 10, 32)
	if err != nil {
		return fmt.Errorf("a user id: %w", err)
	}
	*u = UserIDOf(uint32(n))
	return nil
}
