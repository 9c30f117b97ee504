package ublk

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/ublk/internal/sys"
)

func TestQueueServes(t *testing.T) {
	mem := make([]byte, 1<<20)
	k := startFake(t, Options{}, HandlerFunc(func(q *Queue, r *Request) {
		span := mem[r.Offset() : r.Offset()+r.Bytes()]
		switch r.Op {
		case OpRead:
			copy(r.Data, span)
		case OpWrite:
			copy(span, r.Data)
		}
		q.CompleteOK(r.Tag)
	}))
	model := bytes.Clone(mem)
	rng := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		sector, n := uint64(rng.IntN(2000)), uint32(1+rng.IntN(32))
		span := model[sector*512 : sector*512+uint64(n)*512]
		if rng.IntN(2) == 0 {
			// The driver copies into the tag's buffer before it delivers.
			fill := byte(rng.Uint32())
			tag := k.peekTag()
			buf := k.q.buffer(&k.q.reqs[tag], int64(n)*512)
			for i := range buf {
				buf[i], span[i] = fill, fill
			}
			if res := k.do(request(OpWrite, sector, n)); res != int32(n)*512 {
				t.Fatalf("write: %d", res)
			}
			continue
		}
		tag := k.peekTag()
		if res := k.do(request(OpRead, sector, n)); res != int32(n)*512 {
			t.Fatalf("read: %d", res)
		}
		if !bytes.Equal(k.q.buffer(&k.q.reqs[tag], int64(n)*512), span) {
			t.Fatal("read: wrong data")
		}
	}
	k.stop()
}

// peekTag is the tag that the next delivery takes.
func (k *fakeKernel) peekTag() uint16 {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, s := range k.mu.tags {
		if s.state == fakeFetched {
			return uint16(i)
		}
	}
	k.t.Fatal("no tag is fetched")
	return 0
}

func TestResults(t *testing.T) {
	var give int32
	k := startFake(t, Options{}, HandlerFunc(func(q *Queue, r *Request) {
		q.Complete(r.Tag, give)
	}))
	const eio = -int32(unix.EIO)
	for _, c := range []struct {
		what       string
		d          sys.IODesc
		give, want int32
	}{
		{"whole read", request(OpRead, 0, 8), 4096, 4096},
		{"short read", request(OpRead, 0, 8), 4095, eio},
		{"long write", request(OpWrite, 0, 8), 8192, eio},
		{"empty read", request(OpRead, 0, 8), 0, eio},
		{"flush", request(OpFlush, 0, 0), 0, 0},
		{"flush with a count", request(OpFlush, 0, 0), 512, 0},
		{"discard with a count", request(OpDiscard, 0, 1<<23-1), 4096, 0},
		{"write zeroes", request(OpWriteZeroes, 0, 1<<23-1), 0, 0},
		{"error", request(OpRead, 0, 8), -int32(unix.ENOSPC), -int32(unix.ENOSPC)},
	} {
		give = c.give
		if got := k.do(c.d); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
	k.stop()
}

// ioHandler passes requests on to a file with the queue's ring and completes them as they come.
type ioHandler struct {
	hooks
	fd   int
	file File
}

func newIOHandler(t *testing.T) *ioHandler {
	fd, err := unix.Open(filepath.Join(t.TempDir(), "f"), unix.O_RDWR|unix.O_CREAT, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	h := &ioHandler{fd: fd}
	h.start = func(q *Queue) (err error) {
		h.file, err = q.AddFile(fd)
		return err
	}
	h.handle = func(q *Queue, r *Request) {
		s := q.NewSQE(uint64(r.Tag))
		switch r.Op {
		case OpRead:
			s.PrepRead(h.file, r.Data, uint64(r.Offset()), 0)
		case OpWrite:
			s.PrepWrite(h.file, r.Data, uint64(r.Offset()), 0)
		default:
			s.PrepFsync(h.file, true)
		}
	}
	h.completion = func(q *Queue, userData uint64, res int32, _ uint32) {
		q.Complete(uint16(userData), res)
	}
	return h
}

func TestAsynchronousHandler(t *testing.T) {
	h := newIOHandler(t)
	if err := unix.Ftruncate(h.fd, 1<<20); err != nil {
		t.Fatal(err)
	}
	k := startFake(t, Options{}, h)
	ops := []Op{OpRead, OpWrite, OpFlush}
	for i := range 500 {
		n := 0
		for ; n < 1+i%fakeDepth; n++ {
			if _, ok := k.deliver(request(ops[(i+n)%3], uint64(n*8), 8)); !ok {
				t.Fatal("no tag is fetched")
			}
		}
		for range n {
			if r := k.result(); r.res != 4096 && r.res != 0 {
				t.Fatalf("tag %d: %d", r.tag, r.res)
			}
		}
	}
	k.stop()
}

func TestHandlePanics(t *testing.T) {
	var reported atomic.Int32
	o := Options{OnError: func(err error) {
		if !strings.Contains(err.Error(), "boom") {
			t.Errorf("reported: %v", err)
		}
		reported.Add(1)
	}}
	k := startFake(t, o, HandlerFunc(func(q *Queue, r *Request) {
		switch r.Sector {
		case 1:
			panic("boom")
		case 2:
			q.CompleteOK(r.Tag)
			panic("boom after completion")
		}
		q.CompleteOK(r.Tag)
	}))
	if res := k.do(request(OpRead, 1, 1)); res != -int32(unix.EIO) {
		t.Errorf("request whose handler panics: %d", res)
	}
	if res := k.do(request(OpRead, 2, 1)); res != 512 {
		t.Errorf("request whose handler panics after Complete: %d", res)
	}
	// A panic does not lose what came with it.
	for i := range fakeDepth {
		k.deliver(request(OpRead, uint64(1+2*(i%2)), 1))
	}
	for range fakeDepth {
		k.result()
	}
	k.stop()
	if n := reported.Load(); n != 2+fakeDepth/2 {
		t.Errorf("%d panics reported", n)
	}
}

func TestDoubleCompletion(t *testing.T) {
	reports := make(chan error, 10)
	o := Options{OnError: func(err error) { reports <- err }}
	k := startFake(t, o, HandlerFunc(func(q *Queue, r *Request) {
		q.CompleteOK(r.Tag)
		if r.Sector == 1 {
			q.CompleteOK(r.Tag)
		}
		if r.Sector == 2 {
			q.Complete(r.Tag+1, 0)
		}
	}))
	for sector := range uint64(3) {
		if res := k.do(request(OpRead, sector, 1)); res != 512 {
			t.Errorf("sector %d: %d", sector, res)
		}
	}
	k.stop()
	if len(reports) != 2 {
		t.Fatalf("%d reports, want 2", len(reports))
	}
	for range 2 {
		if err := <-reports; !strings.Contains(err.Error(), "is not with the handler") {
			t.Errorf("reported: %v", err)
		}
	}
}

// The driver could not register a request's buffer: the queue does it by command, and undoes it
// before the commit.
func TestBufferByCommand(t *testing.T) {
	k := startFake(t, Options{Mode: AutoZeroCopy}, HandlerFunc(func(q *Queue, r *Request) {
		if r.Data != nil || r.Flags&sys.IONeedRegBuf != 0 || r.BufIndex != r.Tag {
			t.Errorf("request: %+v", r)
		}
		q.CompleteOK(r.Tag)
	}))
	d := request(OpWrite, 0, 8)
	for i := range 10 {
		d.OpFlags = uint32(OpWrite)
		if i%2 == 1 {
			d.OpFlags |= sys.IONeedRegBuf
		}
		if res := k.do(d); res != 4096 {
			t.Errorf("request %d: %d", i, res)
		}
	}
	k.stop()
}

// No wake-up is lost: what was counted before the last Wake is seen by a later Woken.
func TestWake(t *testing.T) {
	var posted, seen atomic.Int64
	progress := make(chan struct{}, 1)
	h := &hooks{
		handle: func(q *Queue, r *Request) { q.CompleteOK(r.Tag) },
		woken: func(*Queue) {
			seen.Store(posted.Load())
			select {
			case progress <- struct{}{}:
			default:
			}
		},
	}
	k := startFake(t, Options{}, h)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5000 {
				posted.Add(1)
				k.q.Wake()
			}
		})
	}
	for range 200 {
		k.do(request(OpRead, 0, 1))
	}
	wg.Wait()
	for seen.Load() != 20000 {
		select {
		case <-progress:
		case <-time.After(5 * time.Second):
			t.Fatalf("saw %d of 20000", seen.Load())
		}
	}
	k.stop()
	k.q.Wake() // after the end it does nothing
}

func TestNoAllocationsPerRequest(t *testing.T) {
	k := startFake(t, Options{}, HandlerFunc(func(q *Queue, r *Request) { q.CompleteOK(r.Tag) }))
	round := func() {
		for range 4 {
			k.deliver(request(OpRead, 0, 8))
		}
		for range 4 {
			<-k.done
		}
	}
	round()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 1000 {
		round()
	}
	runtime.ReadMemStats(&after)
	// The runtime itself allocates now and then.
	if n := after.Mallocs - before.Mallocs; n > 100 {
		t.Errorf("%d allocations for 4000 requests", n)
	}
	k.stop()
}
