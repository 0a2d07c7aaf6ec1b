package files

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"

	"ambassador/certs"
)

// syncBuffer collects log lines of the watcher.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) count(s string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.b.String(), s)
}

// watched is a running Watcher with its own folder.
type watched struct {
	t      *testing.T
	dir    string
	source *certs.Source
	log    syncBuffer
	stop   func()
}

// open makes a watcher of tls.crt and tls.key.
func open(t *testing.T, p pair) (*watched, *Watcher) {
	t.Helper()
	w := &watched{t: t, dir: t.TempDir(), source: certs.NewSource("me")}
	if p.cert != nil {
		w.put("tls.crt", p.cert)
		w.put("tls.key", p.key)
	}
	return w, w.open(w.dir)
}

func (w *watched) open(dir string) *Watcher {
	f := Files{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	watcher, _ := Open(f, w.source, slog.New(slog.NewTextHandler(&w.log, nil)))
	return watcher
}

// run follows until the test ends, or stop.
func (w *watched) run(watcher *Watcher) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	done := make(chan struct{})
	go func() { watcher.Run(ctx); close(done) }() // awaited in stop
	w.stop = func() { cancel(); <-done }
	w.t.Cleanup(w.stop)
}

func watch(t *testing.T, p pair) *watched {
	t.Helper()
	w, watcher := open(t, p)
	w.run(watcher)
	return w
}

func (w *watched) put(name string, b []byte) { write(w.t, filepath.Join(w.dir, name), b) }

// putPair rewrites both files, the key last.
func (w *watched) putPair(p pair) { w.put("tls.crt", p.cert); w.put("tls.key", p.key) }

func (w *watched) rename(from, to string) {
	w.t.Helper()
	if err := os.Rename(filepath.Join(w.dir, from), filepath.Join(w.dir, to)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *watched) link(target, name string) {
	w.t.Helper()
	if err := os.Symlink(target, filepath.Join(w.dir, name)); err != nil {
		w.t.Fatal(err)
	}
}

// fill makes a folder with a pair in it.
func (w *watched) fill(name string, p pair) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Join(w.dir, name), 0o700); err != nil {
		w.t.Fatal(err)
	}
	w.put(name+"/tls.crt", p.cert)
	w.put(name+"/tls.key", p.key)
}

// until waits for a status. It must follow from an event: the limit is shorter than
// the poll interval.
func (w *watched) until(what string, ok func(certs.Status) bool) {
	w.t.Helper()
	limit := time.After(PollInterval * 2 / 3)
	for {
		changed := w.source.Changed()
		if ok(w.source.Status()) {
			return
		}
		select {
		case <-changed:
		case <-limit:
			w.t.Fatalf("no %s: %+v", what, w.source.Status())
		}
	}
}

func serial(s string) func(certs.Status) bool {
	return func(st certs.Status) bool { return st.Serial == s }
}

func complaint(s string) func(certs.Status) bool {
	return func(st certs.Status) bool { return strings.Contains(st.LastError, s) }
}

// wantCurrent checks that the generation is in use.
func (w *watched) wantCurrent(serial string, generation uint64) {
	w.t.Helper()
	if st := w.source.Status(); st.Serial != serial || st.Generation != generation || !st.Ready {
		w.t.Errorf("want serial %s, generation %d in use: %+v", serial, generation, st)
	}
}

func TestWatchTakesARewrittenPairWhole(t *testing.T) {
	w := watch(t, newPair(t, 1, time.Hour))
	w.wantCurrent("1", 1)
	two := newPair(t, 2, time.Hour)
	w.put("tls.crt", two.cert) // does not fit the key yet
	w.until("complaint", complaint("does not match"))
	w.wantCurrent("1", 1)
	w.put("tls.key", two.key)
	w.until("second", serial("2"))
	w.wantCurrent("2", 2)
	st := w.source.Status()
	if st.LastError != "" || st.Loads != 2 || st.Failures < 1 || st.Failures > 2 { // two: its first look found a file that was being written
		t.Errorf("after the whole pair: %+v", st)
	}
	w.stop() // the log comes after
	if w.log.count("identity not renewed") != int(st.Failures) || w.log.count("identity renewed") != 1 {
		t.Errorf("log: %s", &w.log.b)
	}
}

// A pair that follows at once is seen as one change.
func TestWatchWaitsForThePair(t *testing.T) {
	w := watch(t, newPair(t, 1, time.Hour))
	for i := range int64(5) {
		p := newPair(t, i+2, time.Hour)
		w.putPair(p)
		w.until("next", serial(string(rune('2'+i))))
	}
	w.stop() // the log comes after
	if n := w.log.count("identity renewed"); n != 5 {
		t.Errorf("%d renewals are logged", n)
	}
}

func TestWatchSeesRenames(t *testing.T) {
	w := watch(t, newPair(t, 1, time.Hour))
	for i, number := range []string{"2", "3"} { // a watch of the file itself would see only the first
		p := newPair(t, int64(i)+2, time.Hour)
		w.put("new.key", p.key)
		w.put("new.crt", p.cert)
		w.rename("new.key", "tls.key")
		w.rename("new.crt", "tls.crt")
		w.until(number, serial(number))
	}
}

// Kubernetes swaps a symbolic link to the folder of all files.
func TestWatchSeesASwappedLink(t *testing.T) {
	w, _ := open(t, pair{})
	w.fill("..1", newPair(t, 1, time.Hour))
	w.link("..1", "..data")
	w.link("..data/tls.crt", "tls.crt")
	w.link("..data/tls.key", "tls.key")
	w.run(w.open(w.dir))
	w.until("first", serial("1"))
	for i, number := range []string{"2", "3"} {
		w.fill(".."+number, newPair(t, int64(i+2), time.Hour))
		w.link(".."+number, "..tmp")
		w.rename("..tmp", "..data")
		w.until(number, serial(number))
		if err := os.RemoveAll(filepath.Join(w.dir, ".."+string(rune('1'+i)))); err != nil { // as the kubelet does
			t.Fatal(err)
		}
	}
	w.wantCurrent("3", 3)
}

// The watch follows a link that is swapped while the watch is being set.
func TestFollowSeesALinkSwappedMeanwhile(t *testing.T) {
	w, _ := open(t, pair{})
	w.fill("..1", newPair(t, 1, time.Hour))
	w.fill("..2", newPair(t, 2, time.Hour))
	w.link("..1", "..data")
	w.link("..data/tls.crt", "tls.crt")
	events, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	swapped := false
	got := follow(events, func() []string {
		found := Trail(filepath.Join(w.dir, "tls.crt"))
		if !swapped { // after the look, before anything is watched
			swapped = true
			w.link("..2", "..tmp")
			w.rename("..tmp", "..data")
		}
		return found
	})
	want := filepath.Join(w.dir, "..2")
	if !slices.Contains(events.WatchList(), want) || !slices.Contains(got, filepath.Join(want, "tls.crt")) {
		t.Errorf("the watch is on %v, for the trail %v; want %s among them", events.WatchList(), got, want)
	}
}

// The link that is swapped may be neither beside the path nor beside the file.
func TestWatchSeesALinkInTheMiddle(t *testing.T) {
	w, _ := open(t, pair{})
	w.fill("store/v1", newPair(t, 1, time.Hour))
	w.link("v1", "store/current")
	w.fill("etc", pair{})
	for _, name := range []string{"tls.crt", "tls.key"} {
		os.Remove(filepath.Join(w.dir, "etc", name))
		w.link("../store/current/"+name, "etc/"+name)
	}
	w.run(w.open(filepath.Join(w.dir, "etc")))
	w.until("first", serial("1"))
	w.fill("store/v2", newPair(t, 2, time.Hour))
	w.link("v2", "store/tmp")
	w.rename("store/tmp", "store/current")
	w.until("second", serial("2"))
	w.put("store/v2/tls.crt", nil)
	w.until("complaint", complaint("no certificate"))
}

// The folder goes and comes back, deleted or renamed.
func TestWatchSeesTheFolderComeBack(t *testing.T) {
	w, _ := open(t, pair{})
	w.fill("certs", newPair(t, 1, time.Hour))
	w.run(w.open(filepath.Join(w.dir, "certs")))
	w.until("first", serial("1"))
	if err := os.RemoveAll(filepath.Join(w.dir, "certs")); err != nil {
		t.Fatal(err)
	}
	w.until("complaint", complaint("no such file"))
	w.wantCurrent("1", 1)
	w.fill("certs", newPair(t, 2, time.Hour))
	w.until("second", serial("2"))
	w.fill("next", newPair(t, 3, time.Hour))
	w.rename("certs", "old")
	w.rename("next", "certs")
	w.until("third", serial("3"))
	w.fill("certs", newPair(t, 4, time.Hour))
	w.until("fourth", serial("4"))
}

func TestWatchKeepsAValidPairFromOneThatIsNot(t *testing.T) {
	w := watch(t, newPair(t, 1, time.Hour))
	w.putPair(newPair(t, 2, -time.Hour))
	w.until("complaint", complaint("expired at"))
	w.wantCurrent("1", 1)
	w.putPair(newPairFrom(t, 3, time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)))
	w.until("complaint", complaint("not valid before"))
	w.wantCurrent("1", 1)
	w.putPair(newPair(t, 4, time.Hour))
	w.until("fourth", serial("4"))
}

// A pair that was damaged and then restored makes no new generation.
func TestWatchClearsAnError(t *testing.T) {
	one := newPair(t, 1, time.Hour)
	w := watch(t, one)
	w.put("tls.key", one.key[:50])
	w.until("complaint", complaint("cut short"))
	w.put("tls.key", one.key)
	w.until("silence", func(st certs.Status) bool { return st.LastError == "" })
	w.wantCurrent("1", 1)
}

func TestOpenWithoutFilesAndRunTakesThemUp(t *testing.T) {
	w, watcher := open(t, pair{})
	if st := w.source.Status(); st.Ready || !strings.Contains(st.LastError, "tls.crt: no such file") || !strings.Contains(st.LastError, "tls.key: no such file") {
		t.Errorf("without files: %+v", st)
	}
	w.run(watcher)
	w.putPair(newPair(t, 1, time.Hour))
	w.until("pair", serial("1"))
	if n := w.source.Status().Failures; n != 1 && n != 2 { // the second: one of two files is there
		t.Errorf("%d failures: one is told again", n)
	}
}

// Changes between Open and Run are noticed, and so are those between two Runs.
func TestRunReadsAtOnce(t *testing.T) {
	w, watcher := open(t, newPair(t, 1, time.Hour))
	w.putPair(newPair(t, 2, time.Hour))
	w.run(watcher)
	w.until("second", serial("2"))
	w.stop()
	w.putPair(newPair(t, 3, time.Hour))
	w.run(watcher)
	w.until("third", serial("3"))
}

func TestOpenPublishesAPairThatIsNotValid(t *testing.T) {
	w, _ := open(t, newPair(t, 1, -time.Hour))
	if st := w.source.Status(); st.Ready || st.Serial != "1" || !strings.Contains(st.Reason, "expired at") || w.log.count("identity not usable") != 1 {
		t.Errorf("%+v; log: %s", st, &w.log.b)
	}
}

// Without events polling suffices; an error is reported once, however often the file
// is read.
func TestPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, watcher := open(t, newPair(t, 1, time.Hour))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { watchPaths(ctx, &fsnotify.Watcher{}, watcher.files.Paths(), watcher.look); close(done) }() // awaited below
		synctest.Wait()                                                                                        // it has read the first pair
		start := time.Now()
		changed := w.source.Changed()
		w.put("tls.key", newPair(t, 2, time.Hour).key)
		<-changed
		if took := time.Since(start); took > PollInterval {
			t.Errorf("seen after %v", took)
		}
		<-time.After(10*PollInterval + PollInterval/2) // between two polls: nothing is read while we write
		if st := w.source.Status(); st.Failures != 1 || w.log.count("identity not renewed") != 1 {
			t.Errorf("after ten polls of a bad pair: %+v; log: %s", st, &w.log.b)
		}
		changed = w.source.Changed()
		w.putPair(newPair(t, 3, time.Hour))
		<-changed
		w.wantCurrent("3", 2)

		// A pair that is not valid yet is used when it becomes valid.
		w.putPair(newPairFrom(t, 4, time.Now().Add(PollInterval+7*time.Second), time.Now().Add(time.Hour)))
		start, changed = time.Now(), w.source.Changed()
		<-changed // the complaint
		changed = w.source.Changed()
		<-changed
		w.wantCurrent("4", 3)
		if took := time.Since(start); took > PollInterval+8*time.Second {
			t.Errorf("taken after %v", took)
		}
		cancel()
		<-done
	})
}

// Nothing is left when ctx has ended.
func TestRunLeavesNothingBehind(t *testing.T) {
	before := inotifies(t)
	w, watcher := open(t, newPair(t, 1, time.Hour))
	for range 10 {
		w.run(watcher)
		w.stop()
	}
	if after := inotifies(t); after != before {
		t.Errorf("%d inotify descriptors, %d before", after, before)
	}
	for end := time.Now().Add(10 * time.Second); strings.Contains(stacks(), "fsnotify."); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal(stacks())
		}
	}
}

// inotifies counts descriptors, if the system lists them.
func inotifies(t *testing.T) (n int) {
	t.Helper()
	all, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range all {
		if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.Contains(to, "inotify") {
			n++
		}
	}
	return n
}

// stacks returns those of all goroutines without the lines of this file.
func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

// An identity may have only roots: that of tls.ca.
func TestWatchRootsAlone(t *testing.T) {
	w, _ := open(t, pair{})
	f := Files{CA: filepath.Join(w.dir, "ca.crt")}
	if _, err := Open(f, certs.NewSource("ca"), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "ca.crt: no such file") {
		t.Errorf("without the file: %v", err)
	}
	w.put("ca.crt", newPair(t, 1, time.Hour).cert)
	w.source = certs.NewSource("ca")
	watcher, err := Open(f, w.source, slog.New(slog.NewTextHandler(&w.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	w.run(watcher)
	first, err := w.source.Current()
	if err != nil || first.Certificate != nil || first.Roots == nil {
		t.Fatalf("roots alone: %+v, %v", first, err)
	}
	w.put("ca.crt", []byte("no PEM"))
	w.until("complaint", complaint("ca.crt"))
	if now, _ := w.source.Current(); now != first {
		t.Error("bad roots took the place of good ones")
	}
	w.put("ca.crt", newPair(t, 2, time.Hour).cert)
	w.until("second", func(st certs.Status) bool { return st.Generation == 2 && st.LastError == "" })
	w.stop() // the log comes after
	if w.log.count("roots renewed") != 1 || w.log.count("roots not renewed") != 1 {
		t.Errorf("log: %s", &w.log.b)
	}
}

func TestTrail(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{t: t, dir: dir}
	w.fill("real", pair{[]byte("x"), []byte("x")})
	w.link("real", "folder")
	w.link("folder/tls.crt", "short")
	w.link(dir+"/folder/../short", "absolute") // .. is that of real
	w.link("loop", "loop")
	for path, want := range map[string]string{
		"real/tls.crt":       "real/tls.crt",
		"folder/tls.crt":     "folder real/tls.crt",
		"short":              "short folder real/tls.crt",
		"absolute":           "absolute folder short folder real/tls.crt",
		"real/absent/x/y":    "real/absent",
		"folder/absent":      "folder real/absent",
		"real/tls.crt/x":     "real/tls.crt/x",
		"real/./../short":    "short folder real/tls.crt",
		"loop":               strings.TrimSpace(strings.Repeat("loop ", maxLinks)),
		"real/../../../..//": "",
	} {
		var got []string
		for _, p := range Trail(dir + "/" + path) {
			if rel, err := filepath.Rel(dir, p); err == nil && !strings.HasPrefix(rel, "..") {
				got = append(got, rel)
			}
		}
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("trail of %s = %q, want %q", path, got, want)
		}
	}
}

// The folder of a certificate may be busy with other files.
func TestEventsOfOtherFilesDoNotConcern(t *testing.T) {
	for name, want := range map[string]bool{"/a/tls.crt": true, "/a": true, "/a/other": false, "/a/tls.crt.tmp": false, "/": false} {
		if got := concerns(fsnotify.Event{Name: name}, []string{"/a/tls.crt"}); got != want {
			t.Errorf("an event of %s concerns: %v, want %v", name, got, want)
		}
	}
}

// A revocation list that cannot be used is logged, with the file and the fix. Package
// certs tests its effect on connections.
func TestUnusableListsAreLogged(t *testing.T) {
	w := &watched{t: t, dir: t.TempDir(), source: certs.NewSource("me")}
	w.putPair(newPair(t, 1, time.Hour))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "test CA"}, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: time.Now().Add(-time.Hour)}, ca, key)
	if err != nil {
		t.Fatal(err)
	}
	w.put("ca.crl", list)
	in := func(name string) string { return filepath.Join(w.dir, name) }
	log := slog.New(slog.NewTextHandler(&w.log, nil))
	if _, err := Open(Files{Cert: in("tls.crt"), Key: in("tls.key"), CRL: in("ca.crl")}, w.source, log); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`level=WARN msg="revocation list not usable" identity=me file=` + in("ca.crl"), "it expired at", "put a new list in the crl file"} {
		if w.log.count(want) != 1 {
			t.Errorf("no %q in:\n%s", want, w.log.b.String())
		}
	}
}

// A root that is not used is logged at the start, and again when the file changes.
func TestUnusedRootsAreLogged(t *testing.T) {
	w := &watched{t: t, dir: t.TempDir(), source: certs.NewSource("me")}
	w.put("ca.crt", concat(sampleFile(t, "ca.crt"), sampleFile(t, "negative.crt")))
	path := filepath.Join(w.dir, "ca.crt")
	watcher, err := Open(Files{CA: path}, w.source, slog.New(slog.NewTextHandler(&w.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	want := `level=WARN msg="root not used" identity=me file=` + path + ` cause="certificate `
	if w.log.count(want+"2 of the file") != 1 {
		t.Errorf("no %q in:\n%s", want, w.log.b.String())
	}
	watcher.update(time.Now())
	if w.log.count(want) != 1 {
		t.Errorf("logged again without a change:\n%s", w.log.b.String())
	}
	w.put("ca.crt", concat(sampleFile(t, "pss.crt"), sampleFile(t, "ca.crt"), sampleFile(t, "negative.crt")))
	watcher.update(time.Now())
	if w.log.count(want+"1 of the file") != 1 || w.log.count(want+"3 of the file") != 1 {
		t.Errorf("not logged after a change:\n%s", w.log.b.String())
	}
}

// A panic while the files are read is reported as their error, and the next change is
// used.
func TestPanicInTheWatcher(t *testing.T) {
	p := newPair(t, 1, time.Hour)
	w, watcher := open(t, p)
	panics := make(chan string, 9)
	w.source.OnPanic = func(part string) { panics <- part }
	handler := &panicking{Handler: slog.NewTextHandler(&w.log, nil), at: "identity renewed"}
	watcher.log = slog.New(handler)
	w.run(watcher)
	w.putPair(newPair(t, 2, time.Hour))
	if part := <-panics; part != "files" {
		t.Errorf("a panic of %q", part)
	}
	w.until("the failure", func(st certs.Status) bool {
		return strings.Contains(st.LastError, "internal error: panic: a log")
	})
	w.putPair(newPair(t, 3, time.Hour))
	w.until("the next pair", func(st certs.Status) bool { return st.Serial == "3" })
	if w.log.count(`msg="identity not renewed"`) == 0 || w.log.count("stack=") == 0 {
		t.Errorf("log: %s", w.log.b.String())
	}
}

// panicking is a log handler that panics once, at a message.
type panicking struct {
	slog.Handler
	at   string
	once sync.Once
}

func (h *panicking) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == h.at {
		h.once.Do(func() { panic("a log") })
	}
	return h.Handler.Handle(ctx, r)
}
