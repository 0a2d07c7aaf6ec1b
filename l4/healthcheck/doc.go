// Package healthcheck judges what a server says to a health probe once the connection is
// made: it reads in bounds, and looks for the answer that the configuration expects.
package healthcheck
