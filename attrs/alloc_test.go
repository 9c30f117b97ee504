package attrs

import (
	"testing"

	"golang.org/x/sys/unix"
)

// sink keeps the compiler from leaving things out.
var sink uint64

// TestAllocations: a request with attributes, from the client's bytes to the answer's, allocates nothing.
func TestAllocations(t *testing.T) {
	client := fullSet()
	if err := client.AddUnknown(0xf001, []byte("abc")); err != nil {
		t.Fatal(err)
	}
	client.Require(IDHint)
	in, out := make([]byte, SlotBytes), make([]byte, SlotBytes)
	broken := with(frame(ent(1, 0, 99), ent(1, 0, 1)), 8, 0xff)
	bad := frame(ent(1, 0, 99), ent(2, 0, 9))
	rule := parsed(t, "hint=cache,tenant=7")
	rule.Mark(SourceRule)
	sums := client.Checksum().Sums
	block, room := make([]byte, BlockSize), make([]byte, 0, 8)
	total := fullResults(t)
	for name, f := range map[string]func(){
		"client": func() {
			var s Set
			s.SetHint(HintOnce)
			s.SetPriority(Priority{ClassRT, 2})
			s.SetTiming()
			n, err := s.Encode(in)
			if err != nil {
				t.Fatal(err)
			}
			sink += uint64(n)
		},
		"server": func() {
			if _, err := client.Encode(in); err != nil {
				t.Fatal(err)
			}
			var s Set
			if s.Decode(in) != nil {
				t.Fatal("not decoded")
			}
			s.AddIOPrio(2<<13 | 770<<3)
			s.AddCgroup(3)
			s.Merge(rule)
			s.Piece(0, 2)
			var r Results
			r.Begin(&s, Request{Write, 0, 8192}, 1)
			for id := ID(1); id < idEnd; id++ {
				if r.Pending(&s, id) {
					r.Handle(id)
				}
			}
			r.SetChecksums(CRC32C, sums)
			r.SetTiming(Timing{Total: 5})
			if _, errno := s.CheckRequired(&r); errno != unix.Errno(0) {
				t.Fatal(errno)
			}
			if _, err := r.Encode(out); err != nil {
				t.Fatal(err)
			}
		},
		"checksums": func() {
			for _, a := range []Algorithm{XXH64, CRC32C, CRC64NVMe} {
				c := Checksum{Algorithm: a, Sums: a.AppendSums(room, block)}
				if _, ok := c.Verify(0, block); !ok {
					t.Fatal("differs")
				}
			}
		},
		"answer": func() {
			var r Results
			if err := r.Decode(out); err != nil && err != ErrNone {
				t.Fatal(err)
			}
			r.Combine(total)
			r.Join(total)
			sink += uint64(r.For(IDHint).Status)
		},
		"unreadable": func() {
			var s Set
			if s.Decode(broken) != ReasonLength {
				t.Fatal("accepted")
			}
		},
		"invalid": func() {
			var s Set
			var r Results
			if s.Decode(bad) != nil {
				t.Fatal("refused")
			}
			r.Begin(&s, Request{Write, 0, 8192}, 1)
			sink += uint64(r.For(IDMode).Status)
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkServer(b *testing.B) {
	in, out := make([]byte, SlotBytes), make([]byte, SlotBytes)
	if _, err := parsed(b, "hint=bypass,prio=rt/2,tenant=7,timing").Encode(in); err != nil {
		b.Fatal(err)
	}
	rule := parsed(b, "lifetime=short")
	rule.Mark(SourceRule)
	var s Set
	var r Results
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Decode(in); err != nil {
			b.Fatal(err)
		}
		s.Merge(rule)
		r.Begin(&s, Request{Read, 0, 4096}, 1)
		r.Handle(IDHint)
		if _, err := r.Encode(out); err != nil {
			b.Fatal(err)
		}
	}
}
