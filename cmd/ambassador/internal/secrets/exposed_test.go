package secrets

import (
	"errors"
	"maps"
	"testing"
	"testing/synctest"
	"time"
)

func TestALookThatHangsDelaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks, gone := 0, make(chan struct{})
		var hang bool
		e := exposed{look: func(path string) error {
			looks++
			if hang && path == "a" {
				<-gone
				return nil
			}
			return errors.New("all may read " + path)
		}}
		want := map[string]string{"a": "all may read a"}
		if got := e.of([]string{"a"}); !maps.Equal(got, want) {
			t.Errorf("a look finds %v, want %v", got, want)
		}
		hang = true
		for range 3 {
			start := time.Now()
			if got := e.of([]string{"a"}); !maps.Equal(got, want) {
				t.Errorf("during a look that hangs %v is found, want %v as before", got, want)
			}
			if took := time.Since(start); took != lookTimeout {
				t.Errorf("the answer took %v, want %v", took, lookTimeout)
			}
		}
		synctest.Wait()
		if looks != 2 {
			t.Errorf("%d looks, want 2: the second one goes on", looks)
		}
		close(gone)
		synctest.Wait()
		hang = false
		if got := e.of([]string{"b"}); len(got) != 1 || got["b"] == "" {
			t.Errorf("after its end a look at b finds %v", got)
		}
	})
}
