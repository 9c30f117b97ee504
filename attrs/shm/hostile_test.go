package shm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/attrs/shm/hostile"
)

// truncated is a view of memory that its owner has taken away: what seals prevent, and what access
// to a page that cannot be allocated looks like.
func truncated(t *testing.T) *View {
	t.Helper()
	l := layoutOf(16, 8)
	fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, l.size); err != nil {
		t.Fatal(err)
	}
	mem, err := mapMemory(fd, l.size)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Ftruncate(fd, 0), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	return &View{memory: memory{layout: l, mem: mem}, size: l.size}
}

// TestBusError raises a real SIGBUS in every method that touches the client's memory.
func TestBusError(t *testing.T) {
	v := truncated(t)
	defer v.Close()
	s, _ := v.Server()
	q := &Request{seq: 1, length: PageBytes}
	buf := make([]byte, 2*PageBytes)
	for name, f := range map[string]func() error{
		"CopyOut":  func() error { return v.CopyOut(buf, 0) },
		"CopyIn":   func() error { return v.CopyIn(0, buf) },
		"Read":     func() error { _, err := v.Read(new(Request), 0, PageBytes); return err },
		"plain":    func() error { _, err := v.plain(0, 2*PageBytes); return err },
		"Answer":   func() error { return v.Answer(q, 1) },
		"Next":     func() error { _, _, err := s.Next(new(Entry)); return err },
		"Complete": func() error { _, err := s.Complete(Completion{}); return err },
		"Sleep":    func() error { _, err := s.Sleep(); return err },
		"Awake":    func() error { return s.Awake() },
	} {
		for range 2 {
			if err := f(); !errors.Is(err, ErrFault) {
				t.Errorf("%s: %v, want %v", name, err, ErrFault)
			}
			if debug.SetPanicOnFault(false) {
				t.Errorf("%s leaves faults of the goroutine as panics", name)
			}
		}
	}
}

// TestBusErrorAlways: the fast way of a server's thread, which has faults as panics, survives one, too.
func TestBusErrorAlways(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(false))
	hostile.Always()
	v := truncated(t)
	defer v.Close()
	if _, err := v.Read(&Request{Memo: new(Memo)}, 0, PageBytes); !errors.Is(err, ErrFault) {
		t.Errorf("%v, want %v", err, ErrFault)
	}
}

// TestGuard: a mistake of our own is no fault of the client's.
func TestGuard(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("an index out of range was taken for a fault of the memory")
		}
	}()
	v := truncated(t)
	defer v.Close()
	_ = v.copyOut(make([]byte, 10), v.size)
}

// TestHoles: pages that the client gives back to the system read as zeroes.
func TestHoles(t *testing.T) {
	r, v := pair(t, Options{Bytes: 1 << 20, Entries: 8})
	issue(t, r, 0, PageBytes, hint(1))
	err := unix.Fallocate(r.FD(), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, r.size)
	if err != nil {
		t.Fatal(err)
	}
	q := Request{Memo: new(Memo)}
	if n, err := v.Read(&q, 0, PageBytes); n != PageBytes || err != nil || q.Given() {
		t.Errorf("%d %v, given %t", n, err, q.Given())
	}
	if _, err := unix.FcntlInt(uintptr(r.FD()), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err == nil {
		t.Error("more seals could be added")
	}
	if err := unix.Ftruncate(r.FD(), 0); err == nil {
		t.Error("the memory could be made smaller")
	}
}

// TestChangedInFlight has a client that writes anything anywhere while the server works.
func TestChangedInFlight(t *testing.T) {
	r, v := pair(t, Options{Bytes: 64 * PageBytes, Entries: 8})
	s, _ := v.Server()
	stop := make(chan struct{})
	var client sync.WaitGroup
	client.Go(func() {
		rng := rand.New(rand.NewPCG(3, 4))
		for {
			select {
			case <-stop:
				return
			default:
			}
			set := hint(attrs.Hint(rng.IntN(8)))
			n := 1 + rng.IntN(16)
			set.SetChecksum(attrs.Checksum{Algorithm: attrs.CRC32C, Sums: sums(attrs.CRC32C, n)})
			_, _ = r.Issue(int64(rng.IntN(48))*PageBytes, n*PageBytes, set)
			for range 8 {
				r.store(r.slots+4*rng.Int64N((r.data-r.slots)/4), rng.Uint32()>>rng.IntN(32))
				r.store(r.ring+4*rng.Int64N((r.slots-r.ring)/4), rng.Uint32()>>rng.IntN(32))
			}
		}
	})
	defer client.Wait()
	defer close(stop)
	rng := rand.New(rand.NewPCG(5, 6))
	given := 0
	for range 20000 {
		hostileRound(t, v, s, rng, &given)
	}
	if given == 0 {
		t.Error("no request ever had attributes")
	}
}

func hostileRound(t *testing.T, v *View, s *Server, rng *rand.Rand, given *int) {
	t.Helper()
	off := rng.Int64N(64*8) * 512
	n := 512 * (1 + rng.Int64N((64*PageBytes-off)/512))
	for n > 0 {
		q := Request{Memo: new(Memo)}
		part, err := v.Read(&q, off, n)
		if err != nil || part <= 0 || part > n {
			t.Fatalf("read %d+%d: %d, %v", off, n, part, err)
		}
		if q.Given() {
			*given++
			before := q.Set.Hint()
			handle(&q, part, dev1)
			if err := v.Answer(&q, dev1); err != nil && !errors.Is(err, ErrNoRoom) {
				t.Fatal(err)
			}
			if q.Set.Hint() != before {
				t.Fatal("the server's copy of the set has changed")
			}
		}
		off, n = off+part, n-part
	}
	var e Entry
	if _, _, err := s.Next(&e); err != nil && !errors.Is(err, ErrBroken) {
		t.Fatal(err)
	}
	if _, err := s.Complete(Completion{}); err != nil && !errors.Is(err, ErrBroken) {
		t.Fatal(err)
	}
}

// FuzzSlots puts any bytes into the slots of a few pages and has a server read and answer, and a
// client collect.
func FuzzSlots(f *testing.F) {
	const pages = 4
	good, err := Create(Options{Bytes: pages * PageBytes})
	if err != nil {
		f.Fatal(err)
	}
	set := hint(1)
	set.SetChecksum(attrs.Checksum{Algorithm: attrs.XXH64, Sums: sums(attrs.XXH64, 3)})
	if _, err := good.Issue(512, 3*PageBytes, set); err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.Clone(good.mem[good.slots:good.data]), int64(512), int64(2*PageBytes), uint16(7))
	f.Add([]byte{}, int64(0), int64(0), uint16(0))
	_ = good.Close()
	f.Fuzz(func(t *testing.T, slots []byte, off, n int64, at uint16) {
		r, v := pair(t, Options{Bytes: pages * PageBytes})
		copy(r.mem[r.slots:r.data], slots)
		k := Ticket{start: off, length: n, seq: binary.LittleEndian.Uint32(r.mem[r.slots:])}
		for left, from := n, off; ; {
			q := Request{Memo: new(Memo)}
			part, err := v.Read(&q, from, left)
			if err != nil {
				if r.holds(from, left) {
					t.Fatal(err)
				}
				break
			}
			if part < 0 || part > left || part == 0 && left != 0 {
				t.Fatalf("%d bytes of %d", part, left)
			}
			if q.Given() {
				handle(&q, part, 1+uint32(at)%5)
				_ = v.Answer(&q, 1+uint32(at)%5)
			}
			if from, left = from+part, left-part; left == 0 {
				break
			}
		}
		if r.holds(off, n) && n <= maxRequest {
			var c Collector
			if d := r.Collect(k, &c).Devices(); len(d) > attrs.MaxDevices {
				t.Fatal(d)
			}
		}
	})
}

// FuzzHeader: what is taken as a header describes memory of that size, and encodes the same.
func FuzzHeader(f *testing.F) {
	l := layoutOf(16, 8)
	b := make([]byte, headerBytes)
	l.encode(b)
	f.Add(b, l.size)
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if len(b) < headerBytes {
			return
		}
		var l layout
		if l.decode(b, size) != nil {
			return
		}
		again := make([]byte, headerBytes)
		l.encode(again)
		if string(again) != string(b[:headerBytes]) || l.size != size ||
			l.slots+int64(l.pages)*pageSlotsBytes > l.data || l.data%PageBytes != 0 {
			t.Errorf("%x of %d bytes is taken as %+v", b, size, l)
		}
	})
}
