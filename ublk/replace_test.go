package ublk

import (
	"bytes"
	"testing"
)

// TestReplace: a request whose memory was replaced is answered from the new one, and the tag keeps that.
func TestReplace(t *testing.T) {
	for _, mode := range []CopyMode{Copy, UserCopy} {
		t.Run(mode.String(), func(t *testing.T) {
			var olds []int
			k := (*fakeKernel)(nil)
			handle := func(q *Queue, r *Request) {
				if mode != Copy {
					if _, ok := q.Replace(r.Tag); ok {
						t.Error("memory was replaced that the queue does not have")
					}
					q.CompleteOK(r.Tag)
					return
				}
				first, addr := r.Data, r.addr
				copy(first, bytes.Repeat([]byte{1}, len(first)))
				old, ok := q.Replace(r.Tag)
				if !ok {
					if len(olds) != q.depth {
						t.Errorf("no memory after %d", len(olds))
					}
					q.CompleteErr(r.Tag, 5)
					return
				}
				olds = append(olds, old)
				clear(first)
				if !bytes.Equal(r.Data, bytes.Repeat([]byte{1}, int(r.Bytes()))) || r.addr == addr {
					t.Errorf("the new memory at %#x (old %#x) has %x", r.addr, addr, r.Data[:4])
				}
				if len(olds)%2 == 0 { // some come back late
					for _, o := range olds {
						q.Reclaim(o)
					}
					olds = olds[:0]
				}
				q.CompleteOK(r.Tag)
			}
			k = startFake(t, Options{Mode: mode}, &hooks{handle: handle})
			for range 3 * fakeDepth {
				if res := k.do(request(OpRead, 0, 8)); res != 4096 {
					t.Errorf("result %d", res)
				}
			}
			k.stop()
			seen := map[int]bool{}
			for _, off := range k.q.spare {
				seen[off] = true
			}
			for i := range k.q.reqs {
				seen[k.q.reqs[i].mem] = true
			}
			for _, o := range olds {
				seen[o] = true
			}
			if mode == Copy && len(seen) != 2*fakeDepth {
				t.Errorf("%d pieces of memory are left of %d", len(seen), 2*fakeDepth)
			}
		})
	}
}
