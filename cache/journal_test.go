package cache

import (
	"syscall"
	"testing"
)

// TestFullPendingRing fills the pending ring when the journal is nearly half full: the commit does
// not fit in front of the pages that are kept for checkpoints, and only a checkpoint makes room.
func TestFullPendingRing(t *testing.T) {
	for used := range 40 {
		dev := make(memStorage, 32<<20)
		if _, err := Format(dev, FormatOptions{BucketBytes: 64 << 10}); err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, dev, 16<<20)
		for range used {
			h.write(0, fill(1, 1))
			h.flush()
		}
		_, limit := h.c.journal.pendingRecords()
		for i := range limit/16 + 8 {
			h.write(int64(i%200)*16*BlockSize, fill(byte(i), 16))
		}
		h.flush()
		h.c.Abandon()
	}
}

// unflushedSSD counts what was written and not flushed when the superblock was written.
type unflushedSSD struct {
	memStorage
	synced bool
	early  bool // the superblock was written first
}

func (s *unflushedSSD) WriteAt(p []byte, off int64) (int, error) {
	s.early = s.early || off == superOffA && !s.synced || off == superOffB && !s.synced
	return s.memStorage.WriteAt(p, off)
}

func (s *unflushedSSD) Sync() error { s.synced = true; return nil }

// TestStartFlushesJournal: a start after a kill counts on what it has replayed only when the SSD was flushed:
// the write of a page may have been under way.
func TestStartFlushesJournal(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 8))
	h.flush()
	s := &unflushedSSD{memStorage: h.ssd}
	c, err := Open(s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c.Abandon()
	if s.early {
		t.Error("the superblock vouches for journal pages that were not flushed")
	}
}

// tearCommit begins a commit of so many pages with a FLUSH. Only bytes from to to of it get to the SSD before the power goes.
func (h *harness) tearCommit(pages, from, to int64) {
	h.t.Helper()
	torn := false
	h.fail = func(op *Op) error {
		if torn || !op.FUA {
			return nil
		}
		if op.Len != pages*pageSize {
			h.t.Fatalf("the commit writes %d bytes at once", op.Len)
		}
		copy(h.ssd[op.Off+from:op.Off+to], op.Mem[from:to])
		torn = true
		return syscall.EIO
	}
	h.l.Submit(&Request{Op: ReqFlush, Backing: h.b.id})
	h.until("the commit", func() bool { return torn })
	h.ops, h.fail = nil, nil
}

// TestTornPageStaysTorn: what is left of a journal page that a power cut has torn is not made whole by the next
// page there, which is torn, too: the block has been read without it meanwhile.
func TestTornPageStaysTorn(t *testing.T) {
	h := small(t)
	tear := func(from, to int64) {
		h.tearCommit(1, from, to)
		h.c.Abandon()
		h.open()
		var err error
		if h.b, err = h.c.Backing(h.b.id); err != nil {
			t.Fatal(err)
		}
	}
	h.write(0, fill(1, 1))
	h.flush()
	h.write(0, fill(2, 1))
	tear(0, pageSize-SectorSize)
	h.wantRead(0, fill(1, 1))
	h.write(8*BlockSize, fill(3, 1))
	tear(pageSize-SectorSize, pageSize)
	h.wantRead(0, fill(1, 1))
	h.wantRead(8*BlockSize, fill(0, 1))
}

// TestStartCommitsBeforeTornPages: what a start itself writes to the journal is in the epoch of the process before. Pages
// that a torn commit of that has left behind are not taken for what follows.
func TestStartCommitsBeforeTornPages(t *testing.T) {
	for first := range int64(3) { // the first page that is there
		h := small(t)
		h.write(0, fill(1, 1))
		h.flush()
		const blocks = 2*pageRecords + 10
		h.write(100*BlockSize, fill(3, blocks))
		h.tearCommit(3, first*pageSize, 3*pageSize)
		for _, drop := range [][]UUID{{h.b.uuid}, nil} {
			h.c.Abandon()
			h.ops = nil
			h.opts.Drop = drop
			h.start()
			if s := h.c.Repaired(); s != "" {
				t.Errorf("from page %d, drop %v: repaired: %s", first, drop, s)
			}
			h.wantRead(0, fill(0, 1))
			h.wantRead(100*BlockSize, fill(0, blocks))
		}
	}
}
