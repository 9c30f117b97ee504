package cache

import (
	"errors"
	"testing"
	"time"

	"ubcache/attrs"
)

// everything has all attributes that a request can have at once, among them the checksums of data.
func everything(data []byte) *attrs.Set {
	var set attrs.Set
	set.SetHint(attrs.HintCache)
	set.SetMode(attrs.Writeback)
	set.SetPriority(attrs.Priority{Class: attrs.ClassRT, Level: 1})
	set.SetLifetime(attrs.LifetimeShort)
	set.SetTenant(attrs.Tenant{ID: 5})
	set.SetDeadline(time.Second)
	set.SetTiming()
	set.SetTrace(99)
	a := attrs.CRC64NVMe
	set.SetChecksum(attrs.Checksum{Algorithm: a, Return: true, Sums: a.AppendSums(nil, data)})
	return &set
}

// A request with attributes allocates no more than one without: nothing, whether it succeeds or fails.
func TestAttributesAllocateNothing(t *testing.T) {
	h := small(t)
	good, bad := fill(1, 1), fill(2, 1)
	h.write(BlockSize, good)
	set, results := everything(good), &attrs.Results{}
	h.ops = make([]*Op, 0, 64)
	data := make([]byte, BlockSize)
	r := &Request{}
	play := func(op ReqOp, content []byte, res *attrs.Results, want error) func() {
		return func() {
			if op == ReqWrite {
				copy(data, content)
			}
			*r = Request{
				Op: op, Backing: h.b.ID(), Off: BlockSize, Len: BlockSize, Data: data, Attrs: set, Results: res,
			}
			h.done = false
			h.l.Submit(r)
			if len(h.ops) > 0 {
				o := h.ops[0]
				h.ops = h.ops[:0]
				if op == ReqRead {
					copy(o.Mem, content)
				} else {
					copy(h.ssd[o.Off:], o.Mem)
				}
				h.l.Complete(o, nil)
			}
			if !h.done || !errors.Is(r.Err, want) && (want != nil || r.Err != nil) {
				t.Fatal(r.Err)
			}
		}
	}
	for name, f := range map[string]func(){
		"a hit":                play(ReqRead, good, results, nil),
		"a hit without answer": play(ReqRead, good, nil, nil),
		"a cached write":       play(ReqWrite, good, results, nil),
		"a write refused":      play(ReqWrite, bad, results, attrs.ErrnoMismatch),
	} {
		f()
		if n := testing.AllocsPerRun(200, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
	for _, id := range []attrs.ID{attrs.IDChecksum, attrs.IDTiming, attrs.IDDeadline, attrs.IDTrace} {
		if h.c.Stats().Attributes.ByAttribute[id.String()].Handled < 800 {
			t.Errorf("%v is not handled", id)
		}
	}
}
