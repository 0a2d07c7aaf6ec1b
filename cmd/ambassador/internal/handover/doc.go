// Package handover replaces the program of this process by another one, and gives it the
// state of the sessions. The state is in memory that has no name and cannot be changed
// any more. If the next program cannot take the state over, it goes back to the one
// before, with the same state.
package handover
