package process

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A reload that is wanted just before the exec is not lost if that fails.
func TestReloadBeforeAnUpgrade(t *testing.T) {
	p := &Process{signals: make(chan os.Signal, 8), reloads: make(chan struct{}, 1)}
	p.signals <- syscall.SIGHUP
	p.signals <- syscall.SIGTERM
	if err := p.noSignal(); err != errSignal || len(p.reloads) != 1 || len(p.signals) != 1 {
		t.Errorf("%v, %d reloads, %d signals are left, want one each", err, len(p.reloads), len(p.signals))
	}
}

// The next program is the one that was checked.
func TestNextProgramIsUnchanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "next")
	for name, change := range map[string]func() error{
		"":            func() error { return nil },
		"replaced":    func() error { os.WriteFile(path+"2", []byte("one"), 0o755); return os.Rename(path+"2", path) },
		"overwritten": func() error { return os.WriteFile(path, []byte("other"), 0o755) },
		"touched":     func() error { return os.Chtimes(path, time.Time{}, time.Unix(1, 0)) },
	} {
		os.WriteFile(path, []byte("one"), 0o755)
		u := &upgrade{}
		u.plan.Binary = path
		var err error
		if u.file, err = os.Stat(path); err != nil {
			t.Fatal(err)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if err := u.unchanged(); (name == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), "changed since it was checked") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A reload that never ends does not hold an upgrade up, which waits for one that does.
func TestUpgradeWaitsForAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Process{ctx: t.Context()}
		p.reloading.Lock()
		began := time.Now()
		if err := p.replaceNow(nil); err != errReloading || time.Since(began) != reloadTimeout {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if err := p.fitsSandbox(); err != errReloading || time.Since(began) != 2*reloadTimeout {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		time.AfterFunc(reloadTimeout/2, p.reloading.Unlock)
		if err := p.fitsSandbox(); err != nil {
			t.Error(err)
		}
	})
}
