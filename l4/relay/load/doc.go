// Package load decides how many event loops are in use, and which of them moves sessions
// to another. It bounds the steps that compute for long, and counts how long events take.
//
// One loop costs up to a tenth less CPU than two: it is woken less often, and finds more
// to do each time. But events wait for one another in a loop long before it is full:
// beyond growAt a second loop raises the throughput and lowers the median latency by a
// tenth, for that CPU. So the first loops get new sessions, their number grows when they
// have something to do for much of their time, and shrinks when they have had little to
// do for a while. A loop with much more work than another moves sessions to it.
//
// Promised: a decision depends only on the arguments of the calls and their order.
// Nothing here reads a clock or calls the system.
package load
