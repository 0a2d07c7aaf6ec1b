package files

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxLinks is the kernel's limit (path_resolution(7)).
const maxLinks = 40

// Trail lists the paths whose change can change what path leads to: every
// symbolic link on the way, and then the file, or the first component that is
// missing. They are absolute, without links in their folders. Kubernetes, for
// example, swaps a link in the middle.
func Trail(path string) []string {
	if !filepath.IsAbs(path) { // not filepath.Abs: it removes "link/.."
		wd, err := os.Getwd()
		if err != nil {
			return nil
		}
		path = wd + "/" + path
	}
	var out []string
	dir, rest := "/", split(path)
	for len(rest) > 0 && len(out) < maxLinks {
		here := filepath.Join(dir, rest[0])
		info, err := os.Lstat(here)
		switch {
		case err != nil:
			return append(out, here)
		case info.Mode()&fs.ModeSymlink != 0:
			out = append(out, here)
			target, err := os.Readlink(here)
			if err != nil {
				return out
			}
			if filepath.IsAbs(target) {
				dir = "/"
			}
			rest = append(split(target), rest[1:]...)
		case len(rest) == 1:
			return append(out, here)
		default:
			dir, rest = here, rest[1:]
		}
	}
	return out
}

// split returns the components of a path without ".".
func split(path string) []string {
	var out []string
	for part := range strings.SplitSeq(path, "/") {
		if part != "" && part != "." {
			out = append(out, part)
		}
	}
	return out
}
