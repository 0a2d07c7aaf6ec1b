// Package integration tests the built binary from outside: its command line, its
// sockets, its log, its metrics, and the behaviour of real programs (netcat,
// PostgreSQL) through it. It imports none of the ambassador's packages, so that it
// sees only what a user can see.
//
// Everything stays on loopback and in temporary folders, and only processes
// that a test started are ended, by their own id. No test sleeps to wait: each
// waits for a line, a metric or the end of a process, with a bound.
//
// A program that a test needs and the machine lacks makes the test skip and say
// so. Environment:
//
//	AMBASSADOR_REQUIRE_SERVERS=1  a missing program is a failure (integration/test sets it)
//	AMBASSADOR_TEST_LONG=1        the full lengths: answers 90 s late, longer loads; builds a
//	                              kube-apiserver if the cache of the user has none
//	AMBASSADOR_TEST_RACE=1        the binary under test is built with -race
//	AMBASSADOR_TEST_BINARY=FILE   test this binary and build none
//	AMBASSADOR_TEST_PGBIN=DIR     where PostgreSQL's programs are, if not in a usual place
package integration
