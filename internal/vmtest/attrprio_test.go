//go:build vm

package vmtest

import (
	"sync"
	"sync/atomic"
	"time"

	"ubcache/attrs"
	"ubcache/attrs/client"
)

// attrIdle is a client of class idle, whose reads the cache does not store beside requests of class rt. It
// reads where nobody else does: the last megabytes of the device.
type attrIdle struct {
	d    *client.Device
	buf  []byte
	next *int64 // how far it is from the end, in bytes
	size int64
}

const (
	attrIdleBytes = 48 << 20
	attrIdleStep  = 8 << 10
)

func newAttrIdle(b *attrBench) *attrIdle {
	b.Helper()
	d, buf := openClient(b.T, "", client.Options{Device: "data", ReadOnly: true})
	size, err := d.Size()
	if err != nil {
		b.Fatal(err)
	}
	return &attrIdle{d, buf[:4096], b.idle, size &^ (attrIdleStep - 1)}
}

// stored reads something new with class idle, and says whether the cache has stored it.
func (i *attrIdle) stored(b *attrBench) bool {
	b.Helper()
	if *i.next += attrIdleStep; *i.next > attrIdleBytes {
		b.Error("idle reads have nothing left that is new")
		return false
	}
	var r attrs.Results
	for _, text := range []string{"prio=idle", "hint=bypass"} {
		var err error
		if _, r, err = i.d.ReadAt(i.buf, i.size-*i.next, attrSet(b, text)); err != nil {
			b.Error(err)
		}
	}
	return r.Origin == attrs.OriginSSD
}

// checkPriority: what the issuer says with class rt counts as that, and idle reads of somebody else yield
// to it: they are stored before, and not while it is there.
func checkPriority(b *attrBench) {
	idle := newAttrIdle(b)
	for range 2 {
		Wait(b, 10*time.Second, "idle reads are stored when they are alone", func() bool { return idle.stored(b) })
	}
	before := b.c.Attributes(b).ByPriority["rt/1"].Requests
	var done atomic.Bool
	var tried, yielded atomic.Int64
	var probing sync.WaitGroup
	probing.Go(func() {
		for !done.Load() {
			if !idle.stored(b) {
				yielded.Add(1)
			}
			tried.Add(1)
		}
	})
	// A request that is over at once may be over between two idle reads.
	const least, most = 2, 20
	acts := int64(0)
	for ; acts < least || yielded.Load() == 0 && acts < most; acts++ {
		b.act(attrs.IDPriority, b.fresh(), "prio=rt/1")
		// The next but one begins when the request was there.
		for n := tried.Load() + 2; tried.Load() < n; {
			time.Sleep(time.Millisecond)
		}
	}
	done.Store(true)
	probing.Wait()
	if yielded.Load() == 0 {
		b.Errorf("%d idle reads were all stored beside requests of class rt", tried.Load())
	}
	if n := b.c.Attributes(b).ByPriority["rt/1"].Requests - before; n < acts {
		b.Errorf("%d requests of class rt, level 1, were served, want %d", n, acts)
	}
	Wait(b, 10*time.Second, "idle reads are stored when rt has gone", func() bool { return idle.stored(b) })
}
