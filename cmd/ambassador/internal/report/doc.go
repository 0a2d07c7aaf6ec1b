// Package report counts the sessions that rules with `report` have allowed, by what they
// asked for, and writes the rules and the --allow flags that would allow them.
//
// It decides nothing: the verdict is that of the session's record. At most 10000
// destinations are kept, which take about 3 MB.
package report
