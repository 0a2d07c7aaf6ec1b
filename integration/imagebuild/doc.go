// Command imagebuild makes the container image of the ambassador without a container
// engine: a manifest for each platform, with one layer that has the static binary, the
// roots of public CAs, and the folders that the process writes to. integration/image
// runs it.
//
// The binary is built by the line of the Dockerfile, so both images have the same one.
// The roots are those of Mozilla, from golang.org/x/crypto/x509roots: go.mod pins their
// version, so the image does not depend on the host that builds it. The same commit,
// version and Go make the same bytes.
//
// It is a module of its own: what it needs is no part of the ambassador.
package main
