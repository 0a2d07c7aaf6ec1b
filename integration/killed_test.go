package integration

import (
	"crypto/tls"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

// TestKilledWhileStoring kills the whole process again and again while it stores a
// certificate of a real step-ca. Each time the next start, without the CA, serves with
// the stored pair, or reports that there is none and why.
//
// A certificate of 30 seconds is dated back by a minute, so that each start finds
// it due for renewal, and renews.
func TestKilledWhileStoring(t *testing.T) {
	t.Parallel()
	root := newStepRoot(t, "step root")
	ca, own := newStepCA(t, root), root.server(t)
	server := startServer(t, takes(func() *tls.Certificate { return own }, root), echo)
	dead, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	k := &killing{storage: filepath.Join(t.TempDir(), "me"), root: root}
	identity := ca.identity(root, "me.test", 30*time.Second, k.storage)
	k.renewing = writeFile(t, "renewing.yaml", patient(stepFile(identity, server.addr)))
	k.alone = writeFile(t, "alone.yaml", stepFile(strings.Replace(identity, ca.url(), "https://127.0.0.1:"+dead, 1), server.addr))
	if err := os.Mkdir(k.storage, 0o700); err != nil {
		t.Fatal(err)
	}
	kills := 20
	if long() {
		kills = 200
	}
	for n := 0; n < kills || n < 3*kills && !k.both(); n++ {
		within := []int{500, 3000, 12000, 50000}[n%4] // folders, and busy machines, differ in how long they take
		if n == 0 {
			within = 0 // mostly before there is a pair
		}
		k.killWriter(t, within)
		k.startAlone(t)
	}
	t.Logf("kill -9 while storing, %d times: %d left the new pair, %d the old one, %d none, %d a draft beside it; each next start served with it, or said that there is none",
		kills, k.renewed, k.kept, k.none, k.drafts)
	if !k.both() {
		t.Error("the kills came all before or all after the writing")
	}
}

// killing is a folder of an identity, and the results of kills in it.
type killing struct {
	storage         string
	root            *stepRoot
	renewing, alone string // configurations: with the CA, and with nobody at its address
	serial          string // of the pair that was there last

	renewed, kept, none, drafts int
}

// both says whether kills came before and after the writing.
func (k *killing) both() bool { return k.renewed > 0 && k.kept+k.none > 0 }

// killWriter starts a process and kills it within the milliseconds in which it
// stores roots and pair: within so many microseconds from when the first file of
// them appears.
func (k *killing) killWriter(t *testing.T, within int) {
	t.Helper()
	w, err := fsnotify.NewWatcher()
	if err == nil {
		err = w.Add(k.storage)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	a := start(t, "run", "-c", k.renewing)
	for bound := time.After(patience); ; {
		select {
		case e := <-w.Events:
			if !e.Has(fsnotify.Create) || !strings.HasSuffix(e.Name, ".new") {
				continue
			}
		case <-bound:
			t.Fatalf("nothing was stored; the log:\n%s", a.stderr)
		}
		break
	}
	during(time.Duration(rand.IntN(within+1)) * time.Microsecond) // at random, which is what is tested
	a.kill(t)
	if text := a.stderr.String(); strings.Contains(text, "stored identity not used") {
		t.Errorf("what an earlier kill had left is damaged: %s", text)
	}
}

// kill is kill -9.
func (a *ambassador) kill(t testing.TB) {
	t.Helper()
	a.signal(syscall.SIGKILL)
	if _, err := a.exit(patience); err != nil {
		t.Fatal(err)
	}
}

// startAlone looks at the folder, and starts a process that has nothing else.
func (k *killing) startAlone(t *testing.T) {
	t.Helper()
	if drafts, _ := filepath.Glob(filepath.Join(k.storage, "*.new")); len(drafts) > 0 {
		k.drafts++
	}
	serial, err := k.keeps()
	if err != nil {
		t.Fatalf("what the kill has left: %v", err)
	}
	a := start(t, "run", "-c", k.alone)
	defer a.kill(t)
	switch serial {
	case "":
		k.none++
		refuses(t, a, "permit", "no_identity", "connection refused")
	case k.serial:
		k.kept++
		line(t, a.connect("front"), "hello")
	default:
		k.renewed++
		line(t, a.connect("front"), "hello")
	}
	k.serial = serial
	if strings.Contains(a.stderr.String(), "stored identity not used") {
		t.Errorf("what the kill has left is not used: %s", a.stderr)
	}
}

// keeps is the serial number of the pair that is stored, which must be whole and
// the CA's; empty if there never was one.
func (k *killing) keeps() (serial string, err error) {
	leaf, err := stored(k.storage)
	if errors.Is(err, fs.ErrNotExist) && k.serial == "" {
		return "", nil
	}
	if err == nil {
		err = leaf.CheckSignatureFrom(k.root.intermediate.cert)
	}
	if err != nil {
		return "", err
	}
	return leaf.SerialNumber.String(), nil
}
