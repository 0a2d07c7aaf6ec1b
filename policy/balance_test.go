package policy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// field makes candidates of "weight/rank/live", with a trailing ! where unusable.
func field(s string) []Candidate {
	var out []Candidate
	for f := range strings.FieldsSeq(s) {
		c := Candidate{Share: &Share{}, Usable: !strings.HasSuffix(f, "!")}
		fmt.Sscanf(f, "%d/%d/%d", &c.Weight, &c.Rank, &c.Live)
		out = append(out, c)
	}
	return out
}

func TestRoundRobin(t *testing.T) {
	for _, tt := range []struct{ name, field, want string }{
		{"in turn", "1 1 1", "012012"},
		{"by weight, spread", "3 1", "00100010"},
		{"nobody usable", "1! 1!", "---"},
		{"only the usable", "1 1! 1", "0202"},
		{"the lowest rank", "1/1 1/0 1/0", "1212"},
		{"a higher rank when nobody else is usable", "1/2 1/0! 1/1", "222"},
		{"a weight below one is one", "0 1", "0101"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b Balancer
			all, got := field(tt.field), ""
			for range tt.want {
				if i := b.Pick(all, 0, 0); i >= 0 {
					got += fmt.Sprint(i)
				} else {
					got += "-"
				}
			}
			if got != tt.want {
				t.Errorf("picks %s, want %s", got, tt.want)
			}
		})
	}
}

func TestRoundRobinWhileOneIsOut(t *testing.T) {
	var b Balancer
	all := field("1 1 1")
	count := [3]int{}
	for i := range 300 {
		all[1].Usable = i < 100 || i >= 200
		count[b.Pick(all, 0, 0)]++
	}
	if count[1] < 60 || count[1] > 70 {
		t.Errorf("picked %v; one that was out for a third of the time makes up for nothing", count)
	}
}

func TestLeastConnections(t *testing.T) {
	for _, tt := range []struct{ name, field, want string }{
		{"the fewest", "1/0/5 1/0/2 1/0/9", "111"},
		{"for its weight", "1/0/2 10/0/9", "111"},
		{"equals take turns", "1/0/2 1/0/2 1/0/3", "0101"},
		{"not the unusable", "1/0/0! 1/0/7", "11"},
		{"rank before load", "1/1/0 1/0/7", "11"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, all, got := Balancer{Method: LeastConnections}, field(tt.field), ""
			for range tt.want {
				got += fmt.Sprint(b.Pick(all, 0, 0))
			}
			if got != tt.want {
				t.Errorf("picks %s, want %s", got, tt.want)
			}
		})
	}
}

func TestRandomTwo(t *testing.T) {
	b, rng := Balancer{Method: RandomTwo}, rand.New(rand.NewPCG(1, 2))
	shares := func(s string) (n [4]int) {
		all := field(s)
		for range 10_000 {
			n[b.Pick(all, rng.Float64(), rng.Float64())]++
		}
		return n
	}
	if n := shares("1/0/0 1/0/0 1/0/0 1/0/0!"); n[3] != 0 || min(n[0], n[1], n[2]) < 2500 {
		t.Errorf("equals: %v", n)
	}
	if n := shares("1/0/0 1/0/0 1/0/9 1/1/0"); n[2] != 0 || n[3] != 0 || min(n[0], n[1]) < 4000 {
		t.Errorf("the busiest of three is never the better of two: %v", n)
	}
	if n := shares("8/0/0 1/0/0 1/0/0"); n[0] < 8000 {
		t.Errorf("weight: %v", n)
	}
	if i := b.Pick(field("1! 1 1!"), 0.99, 0.99); i != 1 {
		t.Errorf("picked %d of one", i)
	}
}

func BenchmarkPick(b *testing.B) {
	all := field("1/0/3 2/0/4 1/0/2")
	for _, m := range []Method{RoundRobin, RandomTwo, LeastConnections} {
		b.Run(fmt.Sprint(m), func(b *testing.B) {
			p := Balancer{Method: m}
			b.ReportAllocs()
			for b.Loop() {
				p.Pick(all, 0.3, 0.6)
			}
		})
	}
}
