// Package adminsocket says where the socket of an admin API is: it binds one for a
// process, and finds those on which a process answers.
//
// It does not know what is said over the socket.
package adminsocket
