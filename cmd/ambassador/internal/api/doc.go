// Package api has the admin API as both of its ends know it: the paths, the JSON types,
// and the bounds that both rely on.
//
// It serves nothing, asks nothing and decides nothing. A field that is added here is one
// that the server fills in and the commands may show.
package api
