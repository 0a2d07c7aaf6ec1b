//go:build cgo

package process

// systemLibraries are read where names of hosts and users are looked up by the
// system's own library, which loads others for it.
var systemLibraries = []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"}
