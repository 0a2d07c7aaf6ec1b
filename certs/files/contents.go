package files

import (
	"log/slog"
	"time"

	"ambassador/certs"
)

// Contents keeps a source current with contents that are pushed, from another place than
// the disk. It does with them what a Watcher does with files. One goroutine uses it.
type Contents struct{ watcher Watcher }

// NewContents makes the Contents of a source.
func NewContents(s *certs.Source, log *slog.Logger) *Contents {
	return &Contents{Watcher{source: s, log: log, name: s.Status().Name}}
}

// Take publishes contents that are good; others are logged and reported to the source
// once, and the source keeps its generation. The paths of f are names, by which read
// gets the contents, and which errors have.
func (c *Contents) Take(f Files, read func(path string) ([]byte, error), now time.Time) {
	c.watcher.files, c.watcher.read = f, read
	c.watcher.update(now)
}

// Fail reports to the source that the contents cannot be had, and logs it once.
func (c *Contents) Fail(err error) { c.watcher.failed(err) }
