package certs

import (
	"strconv"
	"time"
)

// age writes a duration for people: in days from two days on, below that as
// time.Duration does, to the second.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	if d >= 2*day {
		return strconv.FormatInt(int64(d/day), 10) + " days"
	}
	return d.Round(time.Second).String()
}
