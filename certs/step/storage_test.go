package step

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writerFolder is a variable that makes the test binary write storage for ever.
const writerFolder = "AMBASSADOR_TEST_STORAGE_WRITER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerFolder); dir != "" {
		writeForEver(storage{dir})
	}
	os.Exit(m.Run())
}

// newPair is self-signed, of a serial number.
func newPair(serial int64) (*tls.Certificate, error) {
	key, _, err := newRequest([]string{"me"})
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}

// writeForEver says "writing" after the first save.
func writeForEver(s storage) {
	for n := int64(1); ; n++ {
		pair, err := newPair(n)
		if err == nil {
			var unlock func()
			if unlock, err = s.lock(context.Background()); err == nil {
				err = s.save(Config{}, stored{cert: pair, roots: []*x509.Certificate{pair.Leaf}})
				unlock()
			}
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if n == 1 {
			fmt.Println("writing")
		}
	}
}

// A process that is killed at any moment leaves a usable pair and no lock.
func TestKilledWhileWriting(t *testing.T) {
	t.Parallel()
	s := storage{filepath.Join(t.TempDir(), "identity")}
	if err := s.prepare(); err != nil {
		t.Fatal(err)
	}
	for n := range 200 {
		killWriter(t, s)
		kept, err := s.load(Config{})
		if err != nil || kept.cert == nil || len(kept.untrusted) != 1 {
			t.Fatalf("after %d kills: %+v, %v", n+1, kept, err)
		}
	}
	all, err := os.ReadDir(s.dir)
	if err != nil || len(all) > 4 { // pair, roots, lock, and at most one that was not put in place
		t.Errorf("what is left: %v, %v", all, err)
	}
}

// killWriter runs a writer for a few milliseconds.
func killWriter(t *testing.T, s storage) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerFolder+"="+s.dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	<-time.After(time.Duration(mathrand.IntN(5000)) * time.Microsecond) // at random, which is what is tested
	cmd.Process.Kill()
	cmd.Wait()
	if line != "writing\n" {
		t.Fatalf("the writer says %q", line)
	}
}

// A damaged file is logged by name, and does not prevent a start.
func TestDamagedStorage(t *testing.T) {
	pair, err := newPair(1)
	if err != nil {
		t.Fatal(err)
	}
	other, err := newPair(2)
	if err != nil {
		t.Fatal(err)
	}
	whole, _ := encodePair(pair)
	stranger, _ := encodePair(&tls.Certificate{Certificate: other.Certificate, PrivateKey: pair.PrivateKey})
	for name, tt := range map[string]struct {
		file string
		text []byte
		want string
	}{
		"cut pair":         {pairFile, whole[:len(whole)/2], pairFile},
		"key of another":   {pairFile, stranger, "private key does not match"},
		"roots of nothing": {rootsFile, []byte("hello"), rootsFile},
	} {
		t.Run(name, func(t *testing.T) {
			s := storage{t.TempDir()}
			if err := s.save(Config{}, stored{cert: pair, roots: []*x509.Certificate{pair.Leaf}}); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(s.dir, tt.file), tt.text, 0o600); err != nil {
				t.Fatal(err)
			}
			kept, err := s.load(Config{})
			if err == nil || !strings.Contains(err.Error(), tt.want) || kept.cert != nil {
				t.Errorf("%+v, %v; want an error with %q", kept, err, tt.want)
			}
		})
	}
}

func TestLockIsBounded(t *testing.T) {
	s := storage{t.TempDir()}
	unlock, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockPoll)
	defer cancel()
	if _, err := s.lock(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "held by another process") {
		t.Errorf("a second lock: %v", err)
	}
	unlock()
	unlock, err = s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}
