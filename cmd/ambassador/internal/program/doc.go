// Package program has what main hands to every package: the streams, the environment and
// the version of the program, the files and pipes that its command line names, and the
// error that carries its exit code.
//
// It starts nothing and exits nowhere: only main does.
package program
