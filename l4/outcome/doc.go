// Package outcome has the closed words for how sessions and attempts end: the stages, the
// reasons, the advice for each reason, the errors that carry them, the record of a
// session, and the last records. It decides only what a failed connect is (OfDial): l4/ending says
// which reason an error has.
//
// # Promised
//
//   - The words of Stage and Reason are the same in the log, the metrics, the API and the
//     documentation, and none of them changes its meaning.
//   - Each reason has an advice of one sentence.
//   - A Record has the same fields, in the same order, in JSON and in the log.
//
// # Not promised
//
//   - That the list of reasons stays: a later version may add one.
//   - The text of an Error, which is for people.
package outcome
