// Package l4test has what the tests of l4 and of its packages share: servers,
// certificates, errors and a count of panics. Only tests import it.
package l4test
