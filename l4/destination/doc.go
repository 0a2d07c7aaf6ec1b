// Package destination is what a client asks for, and which of its addresses may be
// dialled: those that the rules allow and that do not lead back to us.
package destination
