package ublk

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
	"ubcache/ublk/internal/sys"
)

// fakeKernel stands in for the driver. The queue's ring, thread and loop are the real ones:
// completions of fetches reach it as messages from another ring. It enforces the protocol of each
// tag, fetch → request → commit, exactly one commit for each request, and records every breach.
type fakeKernel struct {
	t    *testing.T
	q    *Queue
	end  chan error
	sqe  SQE          // what commands are put into
	edge atomic.Int64 // deliveries; see ordered

	mu struct {
		sync.Mutex
		ring    *uring.Ring
		target  int // descriptor of the queue's ring
		tags    []fakeTag
		faults  []string
		refuse  map[uint16]int32 // FETCH of these tags fails
		commits int
	}
	// done receives a tag's result at its commit. It has room for all tags.
	done chan fakeResult
}

type fakeTag struct {
	state    fakeState
	buffer   bool // registered by command
	noBuffer bool // must be registered by command before the commit
}

type fakeResult struct {
	tag uint16
	res int32
}

type fakeState uint8

const (
	fakeIdle    fakeState = iota // no command from the server
	fakeFetched                  // the driver may deliver a request
	fakeServer                   // the server owes a commit
)

const fakeDepth = 8

// ordered shows the race detector what the kernel guarantees: what happened before a delivery is
// seen by Handle.
type ordered struct {
	Handler
	k *fakeKernel
}

func (o ordered) Handle(q *Queue, r *Request) {
	o.k.edge.Load()
	o.Handler.Handle(q, r)
}

// newFake makes a queue with its fake driver, not started yet.
func newFake(t *testing.T, o Options, h Handler) *fakeKernel {
	t.Helper()
	o.Depth = fakeDepth
	o.MaxIOBytes = 64 << 10
	o = o.withDefaults()
	d := &Device{id: 99, opts: o, charFD: -1}
	desc, err := uring.NewArena(fakeDepth * 24)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = desc.Free() })
	ring, err := uring.New(64, uring.Options{})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skipf("skipped: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ring.Close() })
	k := &fakeKernel{t: t, end: make(chan error, 1), done: make(chan fakeResult, fakeDepth)}
	k.mu.ring, k.mu.tags = ring, make([]fakeTag, fakeDepth)
	k.mu.refuse = map[uint16]int32{}
	k.q = &Queue{
		dev: d, id: 0, depth: fakeDepth, mode: o.Mode, h: ordered{h, k}, wakeFD: -1, fake: k,
		descs: sys.DescriptorsIn(desc.Bytes()),
	}
	t.Cleanup(func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		for _, f := range k.mu.faults {
			t.Errorf("protocol: %s", f)
		}
	})
	return k
}

// start runs the queue's thread.
func (k *fakeKernel) start() error {
	ready := make(chan error, 1)
	info := &sys.DevInfo{MaxIOBufBytes: uint32(k.q.dev.opts.MaxIOBytes)}
	fetch := make(chan bool, 1)
	go func() { k.end <- k.q.serve(-1, &k.q.dev.opts, info, fetch, ready) }()
	if err := <-ready; err != nil {
		fetch <- false
		return err
	}
	fetch <- true
	err := <-ready
	k.q.dev.live.Store(true)
	return err
}

func startFake(t *testing.T, o Options, h Handler) *fakeKernel {
	t.Helper()
	k := newFake(t, o, h)
	if err := k.start(); err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *fakeKernel) fault(format string, args ...any) {
	k.mu.faults = append(k.mu.faults, fmt.Sprintf(format, args...))
}

// command is what ublk_ch_uring_cmd does.
func (k *fakeKernel) command(q *Queue, op uint32, tag uint16, res int32, addr uint64) *SQE {
	k.take(q, op, tag, res, addr)
	return &k.sqe
}

func (k *fakeKernel) take(q *Queue, op uint32, tag uint16, res int32, addr uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.target = q.ring.FD()
	if int(tag) >= len(k.mu.tags) {
		k.fault("command %#x for tag %d", op, tag)
		return
	}
	s := &k.mu.tags[tag]
	switch op {
	case sys.IOFetchReq:
		if s.state != fakeIdle {
			k.fault("FETCH of tag %d, which is in state %d", tag, s.state)
		}
		if (addr != 0) != (q.mode == Copy) {
			k.fault("FETCH of tag %d with buffer %#x in mode %v", tag, addr, q.mode)
		}
		s.state = fakeFetched
		if e := k.mu.refuse[tag]; e != 0 {
			s.state = fakeIdle
			k.post(tag, e, kindTag)
		}
	case sys.IOCommitAndFetchReq:
		if s.state != fakeServer {
			k.fault("COMMIT of tag %d, which is in state %d", tag, s.state)
		}
		if s.buffer {
			k.fault("COMMIT of tag %d with its buffer still registered", tag)
		}
		s.state = fakeFetched
		k.mu.commits++
		k.done <- fakeResult{tag, res}
	case sys.IORegisterBuf:
		if s.state != fakeServer || s.buffer || !s.noBuffer {
			k.fault("REGISTER of tag %d: %+v", tag, *s)
		}
		s.buffer = true
		k.post(tag, 0, kindBuffer)
	case sys.IOUnregisterBuf:
		if !s.buffer {
			k.fault("UNREGISTER of tag %d: %+v", tag, *s)
		}
		s.buffer = false
	default:
		k.fault("unknown command %#x", op)
	}
}

// post completes a command on the queue's ring.
func (k *fakeKernel) post(tag uint16, res int32, kind uint64) {
	s := k.mu.ring.NextSQE()
	s.PrepMsgRing(uring.FD(k.mu.target), uint32(res), ownUserData|kind<<kindShift|uint64(tag))
	if err := k.mu.ring.SubmitAndWait(1, time.Second); err != nil {
		k.fault("post: %v", err)
	}
	for c := k.mu.ring.Peek(); c != nil; c = k.mu.ring.Peek() {
		if c.Res < 0 {
			k.fault("post: %v", unix.Errno(-c.Res))
		}
		k.mu.ring.Advance(1)
	}
}

// deliver hands a request to the server on a tag that it has fetched. It reports false if there is
// none.
func (k *fakeKernel) deliver(d sys.IODesc) (uint16, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.mu.tags {
		s := &k.mu.tags[i]
		if s.state != fakeFetched {
			continue
		}
		s.state = fakeServer
		k.edge.Add(1)
		s.noBuffer = d.OpFlags&sys.IONeedRegBuf != 0
		*k.q.descs.At(uint16(i)) = d
		k.post(uint16(i), sys.ResOK, kindTag)
		return uint16(i), true
	}
	return 0, false
}

// do delivers a request and waits for its result.
func (k *fakeKernel) do(d sys.IODesc) int32 {
	k.t.Helper()
	if _, ok := k.deliver(d); !ok {
		k.t.Fatal("no tag is fetched")
	}
	return k.result().res
}

func (k *fakeKernel) result() fakeResult {
	k.t.Helper()
	select {
	case r := <-k.done:
		return r
	case err := <-k.end:
		k.t.Fatalf("the queue ended: %v", err)
	case <-time.After(10 * time.Second):
		k.t.Fatal("no result")
	}
	panic("unreachable")
}

// abort ends all fetches, as STOP_DEV does when no request is left.
func (k *fakeKernel) abort() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.mu.tags {
		if k.mu.tags[i].state == fakeFetched {
			k.mu.tags[i].state = fakeIdle
			k.post(uint16(i), sys.ResAbort, kindTag)
		}
	}
}

// ended waits for the queue's end.
func (k *fakeKernel) ended() error {
	k.t.Helper()
	select {
	case err := <-k.end:
		return err
	case <-time.After(10 * time.Second):
		k.t.Fatal("the queue does not end")
	}
	panic("unreachable")
}

func (k *fakeKernel) stop() {
	k.t.Helper()
	k.abort()
	if err := k.ended(); err != nil {
		k.t.Error(err)
	}
}

// requests in short.
func request(op Op, sector uint64, sectors uint32) sys.IODesc {
	return sys.IODesc{OpFlags: uint32(op), StartSector: sector, NrSectors: sectors}
}
