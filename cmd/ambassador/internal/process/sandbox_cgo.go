//go:build cgo

package process

// systemLibraries are read when the system's own library looks up hosts and users: it
// loads other libraries for that.
var systemLibraries = []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"}
