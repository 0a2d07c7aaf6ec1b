// Package page is the live page of the admin API: one HTML document that the server
// renders, a style sheet, a script, and a stream of server-sent events that replaces the
// parts of the document that have changed.
//
// Promised: without JavaScript the document has the same tables, as of its load. A
// snapshot is made when a viewer needs one, at most one a second for all of them: while
// nobody looks, the page costs one sample of the counters every ten seconds. The number
// of viewers, of rows and of samples is bounded.
//
// Not promised: it guards nothing, which is the work of package admin, and it changes
// nothing: its script sends the requests of the admin API.
package page
