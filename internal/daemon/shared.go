package daemon

import (
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"ubcache/attrs/shm"
	"ubcache/cache"
	"ubcache/ublk"
)

// sharedTable has the regions that are registered with one block device, by the driver's index. The
// queues' threads read it.
type sharedTable struct {
	mu    sync.Mutex
	views atomic.Pointer[[]*shm.View]
}

// at is the region with that index; nil if there is none.
func (t *sharedTable) at(index int) *shm.View {
	list := t.views.Load()
	if list == nil || index >= len(*list) {
		return nil
	}
	return (*list)[index]
}

// set makes v the region with that index; nil takes it away. The driver holds back I/O while it
// registers and unregisters, so that no request with the index is under way then.
func (t *sharedTable) set(index int, v *shm.View) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*shm.View
	if old := t.views.Load(); old != nil {
		list = slices.Clone(*old)
	}
	for len(list) <= index {
		list = append(list, nil)
	}
	list[index] = v
	t.views.Store(&list)
}

// clear forgets all regions: the device is gone.
func (t *sharedTable) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.views.Store(nil)
}

// part is a client's request whose data lies in shared memory: all of what the driver has handed
// over, or one of several that the block layer has merged, or a piece of one that it has split.
type part struct {
	req  cache.Request
	said shm.Request
	view *shm.View
	tag  uint16 // of the driver's request
	off  int64  // where the part begins in that
	err  syscall.Errno
	next *part
}

// partTag marks the Tag of a part's request; below it is the part's number.
const partTag = 1 << 31

// parts are those of one queue.
type parts struct {
	all  []*part
	free *part
	// By tag: how many parts are not finished, and what the first one that failed has.
	left []int32
	errs []syscall.Errno
	memo shm.Memo
	// over are those that are over in this round of the loop, and are answered at its end: their answers have a stamp.
	over []*shm.Request
}

func (s *parts) init(depth int) {
	s.left, s.errs = make([]int32, depth), make([]syscall.Errno, depth)
}

// take returns an unused part. Their number grows to what is in flight at most.
func (s *parts) take() *part {
	p := s.free
	if p == nil {
		p = &part{said: shm.Request{Memo: &s.memo}}
		p.said.Tag = uint32(len(s.all))
		p.req.Tag = partTag | p.said.Tag
		s.all = append(s.all, p)
		return p
	}
	s.free = p.next
	return p
}

func (s *parts) put(p *part) {
	p.view, p.next = nil, s.free
	s.free = p
}

func (s *parts) of(r *cache.Request) *part { return s.all[r.Tag&^partTag] }

// handleShared takes a request whose data lies in shared memory. In mode Copy the driver has left its
// data there: a write's is copied before anybody looks at it, so that the client cannot change
// what was checked, and a read's is given out when it is whole.
func (h *queue) handleShared(q *ublk.Queue, r *ublk.Request) {
	index, off := r.Shared()
	view := h.shared.at(index)
	if view == nil {
		// Its client was not found after an earlier daemon's death. It goes the usual way, without
		// attributes, or in mode Copy, where only the client has its data, nowhere.
		if !q.Unshare(r) {
			q.CompleteErr(r.Tag, unix.EIO)
		}
		return
	}
	h.parts.left[r.Tag], h.parts.errs[r.Tag] = 1, 0
	known := h.attrs.look(h.q.ID(), r)
	errno := syscall.Errno(0)
	for done, n := int64(0), r.Bytes(); done < n && errno == 0; {
		p := h.parts.take()
		got, err := view.Read(&p.said, int64(off)+done, n-done)
		if err != nil || got <= 0 {
			h.parts.put(p)
			errno = unix.EIO
			break
		}
		h.parts.left[r.Tag]++
		p.view, p.tag, p.off = view, r.Tag, done
		errno = h.startPart(&known, p, got)
		done += got
	}
	h.partDone(r.Tag, errno)
}

// startPart gives a part of n bytes to the engine.
func (h *queue) startPart(r *request, p *part, n int64) syscall.Errno {
	c := &p.req
	c.Backing, c.Op, c.FUA = h.backing, reqOps[r.Op], r.Flags&ublk.FUA != 0
	c.Off, c.Len, c.Data = r.Offset()+p.off, n, nil
	if h.q.Buffered() {
		c.Data = h.q.Buffer(r.Request)[p.off : p.off+n : p.off+n]
		if at, _ := p.said.Place(); r.Op == ublk.OpWrite {
			if err := p.view.CopyOut(c.Data, at); err != nil {
				h.parts.put(p)
				h.partDone(r.Tag, unix.EIO)
				return unix.EIO
			}
		} else {
			c.Target, _ = p.view.Data(at, n) // without it the data is copied
		}
	}
	c.Attrs, c.Results = nil, nil
	r.addTo(&p.said.Set, c.Off, n)
	if p.said.Given() || !p.said.Set.Empty() {
		c.Attrs, c.Results = &p.said.Set, &p.said.Results
	}
	h.lane.Submit(c)
	return 0
}

// finishPart gives out a part's data and answers. What is answered as before is answered, and ended, with all that end
// in the same round; other answers may refer to what is the request's only now.
func (h *queue) finishPart(r *cache.Request) {
	p := h.parts.of(r)
	at, _ := p.said.Place()
	p.err = 0
	if r.Err != nil {
		h.failed(r)
		p.err = errnoOf(r.Err)
	} else if r.Op == cache.ReqRead && r.Data != nil && !r.Placed && p.view.CopyIn(at, r.Data) != nil {
		p.err = unix.EIO
	}
	answered := r.Attrs != nil && p.said.Given()
	r.Data, r.Target, r.Attrs, r.Results = nil, nil, nil, nil
	if answered && p.said.Results.Stamp() != 0 {
		h.parts.over = append(h.parts.over, &p.said)
		return
	}
	if answered {
		_ = p.view.Answer(&p.said, h.number) // what cannot be answered is not handled
	}
	h.parts.put(p)
	h.partDone(p.tag, p.err)
}

// answerParts answers the parts that are over, and ends them.
func (h *queue) answerParts() {
	s := &h.parts
	if len(s.over) == 0 {
		return
	}
	shm.AnswerAll(s.over, h.number)
	for _, said := range s.over {
		p := s.all[said.Tag]
		s.put(p)
		h.partDone(p.tag, p.err)
	}
	s.over = s.over[:0]
}

// partDone ends a part, and the driver's request with the last one.
func (h *queue) partDone(tag uint16, errno syscall.Errno) {
	s := &h.parts
	if s.errs[tag] == 0 {
		s.errs[tag] = errno
	}
	if s.left[tag]--; s.left[tag] > 0 {
		return
	}
	if e := s.errs[tag]; e != 0 {
		h.q.CompleteErr(tag, e)
		return
	}
	h.q.CompleteOK(tag)
}

// place says where a request's data is among the ring's registered buffers: the buffer's number, and
// the address in it.
func (h *queue) place(r *cache.Request) (buf uint16, at uintptr) {
	if r.Tag&partTag == 0 {
		return uint16(r.Tag), 0
	}
	p := h.parts.of(r)
	return p.tag, uintptr(p.off)
}
