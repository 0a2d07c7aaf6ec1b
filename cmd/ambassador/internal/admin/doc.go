// Package admin serves the admin API: its handlers, its guard against other users and
// web pages, the sockets that a reload keeps or replaces, and the bounds on connections
// and requests of an HTTP server.
//
// What it shows and sets going it is given as functions, see Deps: it knows neither the
// configuration nor the process.
package admin
