// Package netconn has what both sides of a session do with a network connection: bound
// its reads and writes, reset it, look at what has arrived, and tell how it failed.
//
// Promised: an error is judged by its type and number, never by its text; a bound of
// Bound makes a task leave its event loop only when it has to wait.
//
// Not promised: anything about protocols. Packages l4/preface and l4/starttls know those.
package netconn
