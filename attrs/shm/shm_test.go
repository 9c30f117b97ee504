package shm

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
)

const dev1, dev2, dev3, dev4 = 11, 12, 13, 14

// pair is a region with a server's view of it.
func pair(t testing.TB, o Options) (*Region, *View) {
	t.Helper()
	r, err := Create(o)
	if err != nil {
		t.Fatal(err)
	}
	v, err := Open(r.FD(), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(v.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	})
	return r, v
}

func issue(t testing.TB, r *Region, off int64, n int, s *attrs.Set) Ticket {
	t.Helper()
	k, err := r.Issue(off, n, s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// memo is that of all servers here: they are one thread.
var memo Memo

// serve answers a piece as a device that handles every attribute, and returns the sets it saw.
func serve(t testing.TB, v *View, off, n int64, device uint32) (seen []attrs.Set) {
	t.Helper()
	for {
		q := &Request{Memo: &memo}
		part, err := v.Read(q, off, n)
		if err != nil {
			t.Fatal(err)
		}
		if q.Given() {
			handle(q, part, device)
			if err := v.Answer(q, device); err != nil {
				t.Fatal(err)
			}
			seen = append(seen, q.Set)
		}
		if off, n = off+part, n-part; n <= 0 {
			return seen
		}
	}
}

func handle(q *Request, n int64, device uint32) {
	q.Results.Begin(&q.Set, attrs.Request{Direction: attrs.Write, Bytes: n}, attrs.Device(device))
	for id := attrs.ID(1); id.Known(); id++ {
		if !q.Results.Pending(&q.Set, id) {
			continue
		}
		if c := q.Set.Checksum(); id == attrs.IDChecksum {
			q.Results.SetChecksums(c.Algorithm, c.Sums)
			continue
		}
		q.Results.Handle(id)
	}
}

func hint(h attrs.Hint) *attrs.Set {
	var s attrs.Set
	s.SetHint(h)
	s.SetTrace(uint64(h) + 100)
	return &s
}

// sums are different checksums for so many blocks.
func sums(a attrs.Algorithm, n int) []byte {
	var b []byte
	for i := range n {
		b = a.AppendSum(b, 0x0101010101010101*uint64(i%251+1)^uint64(i)<<40)
	}
	return b
}

func status(t testing.TB, res *attrs.Results, want attrs.Status, ids ...attrs.ID) {
	t.Helper()
	for _, id := range ids {
		if got := res.For(id).Status; got != want {
			t.Errorf("%v is %v, want %v", id, got, want)
		}
	}
}

func devices(t testing.TB, res *attrs.Results, want int) {
	t.Helper()
	if got := res.Devices(); len(got) != want {
		t.Errorf("devices %v answered, want %d", got, want)
	}
}

func TestOneRequest(t *testing.T) {
	r, v := pair(t, Options{Bytes: 1 << 20})
	copy(r.Data()[8192:], "data of the client")
	k := issue(t, r, 8192, 4096, hint(attrs.HintBypass))
	got := make([]byte, 18)
	if err := v.CopyOut(got, 8192); err != nil || string(got) != "data of the client" {
		t.Fatalf("the server sees %q, %v", got, err)
	}
	if err := v.CopyIn(12288-4, []byte("back")); err != nil || string(r.Data()[12284:12288]) != "back" {
		t.Fatalf("the client sees %q, %v", r.Data()[12284:12288], err)
	}
	seen := serve(t, v, 8192, 4096, dev1)
	if len(seen) != 1 || seen[0].Hint() != attrs.HintBypass || seen[0].Trace() != 102 {
		t.Fatalf("the server saw %v", seen)
	}
	var c Collector
	res := r.Collect(k, &c)
	status(t, res, attrs.Handled, attrs.IDHint, attrs.IDTrace)
	if d := res.Devices(); len(d) != 1 || d[0] != dev1 || res.Blocks != 1 {
		t.Errorf("devices %v, %d blocks", d, res.Blocks)
	}
	// The slots are empty again, and so is the next request's answer.
	if seen := serve(t, v, 8192, 4096, dev1); len(seen) != 0 {
		t.Errorf("a later request without attributes has %v", seen)
	}
	status(t, r.Collect(issue(t, r, 8192, 4096, hint(1)), &c), attrs.NotHandled, attrs.IDHint)
}

// TestPieces splits a request with checksums at all places and in random ones.
func TestPieces(t *testing.T) {
	r, v := pair(t, Options{Bytes: 4 << 20})
	rng := rand.New(rand.NewPCG(1, 2))
	var c Collector
	for _, blocks := range []int{1, 2, 3, 44, 45, 64, 256} {
		for range 20 {
			want := sums(attrs.XXH64, blocks)
			s := hint(attrs.HintCache)
			s.SetChecksum(attrs.Checksum{Algorithm: attrs.XXH64, Return: true, Sums: want})
			const at = 3 * PageBytes
			k := issue(t, r, at, blocks*PageBytes, s)
			done := 0
			var got []byte
			for done < blocks {
				n := 1 + rng.IntN(blocks-done)
				seen := serve(t, v, at+int64(done)*PageBytes, int64(n)*PageBytes, dev1)
				if len(seen) != 1 || seen[0].Hint() != attrs.HintCache {
					t.Fatalf("piece %d+%d of %d: %v", done, n, blocks, seen)
				}
				got = append(got, seen[0].Checksum().Sums...)
				done += n
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%d blocks: the server got other checksums", blocks)
			}
			res := r.Collect(k, &c)
			status(t, res, attrs.Handled, attrs.IDHint, attrs.IDChecksum, attrs.IDTrace)
			if _, back := res.Checksums(); !bytes.Equal(back, want) {
				t.Fatalf("%d blocks: %d bytes of checksums came back, not those that went out",
					blocks, len(back))
			}
			if res.Blocks != uint32(blocks) {
				t.Errorf("%d blocks answered of %d", res.Blocks, blocks)
			}
		}
	}
}

// TestUnaligned cuts a request that is no whole number of pages, inside of a page.
func TestUnaligned(t *testing.T) {
	r, v := pair(t, Options{Bytes: 1 << 20})
	const at, n = 4096 + 512, 3*4096 + 1024
	k := issue(t, r, at, n, hint(attrs.HintOnce))
	for _, cut := range [][2]int64{{0, 512}, {512, 1024}, {1536, 8192}, {9728, n - 9728}} {
		if seen := serve(t, v, at+cut[0], cut[1], dev1); len(seen) != 1 {
			t.Fatalf("piece %v: %v", cut, seen)
		}
	}
	var c Collector
	status(t, r.Collect(k, &c), attrs.Handled, attrs.IDHint)
}

func TestMissingPiece(t *testing.T) {
	r, v := pair(t, Options{Bytes: 1 << 20})
	var c Collector
	for miss := range 4 {
		k := issue(t, r, 0, 4*PageBytes, hint(1))
		for i := range 4 {
			if i != miss {
				serve(t, v, int64(i)*PageBytes, PageBytes, dev1)
			}
		}
		res := r.Collect(k, &c)
		status(t, res, attrs.NotHandled, attrs.IDHint)
		devices(t, res, 1)
		if res.Blocks != 4 {
			t.Errorf("%d blocks", res.Blocks)
		}
	}
}

// TestMerge reads a request of the block layer that has pages of several of the client's.
func TestMerge(t *testing.T) {
	r, v := pair(t, Options{Bytes: 1 << 20})
	a := issue(t, r, PageBytes, 2*PageBytes, hint(1))
	b := issue(t, r, 4*PageBytes, PageBytes, hint(2))
	d := issue(t, r, 5*PageBytes, 3*PageBytes, hint(3))
	// It begins within a, has a page without attributes before b, and ends within d.
	var q Request
	type part struct{ off, n int64 }
	var got []part
	for off, n := int64(2*PageBytes), int64(5*PageBytes); n > 0; {
		part1, err := v.Read(&q, off, n)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, part{off / PageBytes, part1 / PageBytes})
		off, n = off+part1, n-part1
	}
	want := []part{{2, 1}, {3, 1}, {4, 1}, {5, 2}}
	if len(got) != len(want) {
		t.Fatalf("parts %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("parts %v, want %v", got, want)
		}
	}
	seen := serve(t, v, PageBytes, 7*PageBytes, dev1)
	if len(seen) != 3 || seen[0].Hint() != 1 || seen[1].Hint() != 2 || seen[2].Hint() != 3 {
		t.Fatalf("sets %v", seen)
	}
	var c Collector
	for _, k := range []Ticket{a, b, d} {
		status(t, r.Collect(k, &c), attrs.Handled, attrs.IDHint)
	}
}

// TestDevices has several devices answer the same request.
func TestDevices(t *testing.T) {
	const n = 4 * PageBytes
	type answer struct {
		off, n int64 // pages
		dev    uint32
	}
	for _, c := range []struct {
		name    string
		answers []answer
		want    attrs.Status
		devices int
		lost    uint32
	}{
		{"mirror", []answer{{0, 4, dev1}, {0, 4, dev2}}, attrs.Handled, 2, 0},
		{"mirror, cut differently", []answer{
			{0, 4, dev1}, {0, 1, dev2}, {1, 3, dev2},
		}, attrs.Handled, 2, 0},
		{"mirror, one half answers a part", []answer{
			{0, 4, dev1}, {0, 2, dev2},
		}, attrs.NotHandled, 2, 0},
		{"mirror, one half answers the end", []answer{
			{0, 4, dev1}, {2, 2, dev2},
		}, attrs.NotHandled, 2, 0},
		{"stripe", []answer{
			{0, 1, dev1}, {1, 1, dev2}, {2, 1, dev1}, {3, 1, dev2},
		}, attrs.Handled, 2, 0},
		{"stripe of mirrors", []answer{
			{0, 2, dev1}, {0, 2, dev2}, {2, 2, dev3}, {2, 2, dev4},
		}, attrs.Handled, 4, 0},
		{"once more", []answer{{0, 4, dev1}, {0, 4, dev1}}, attrs.Handled, 1, 0},
		{"three", []answer{{0, 4, dev1}, {0, 4, dev2}, {0, 4, dev3}}, attrs.Handled, 3, 0},
		{"four", []answer{
			{0, 4, dev1}, {0, 4, dev2}, {0, 4, dev3}, {0, 4, dev4},
		}, attrs.NotHandled, 3, 1},
		{"nobody", nil, attrs.NotHandled, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, v := pair(t, Options{Bytes: 1 << 20})
			k := issue(t, r, 0, n, hint(1))
			for _, a := range c.answers {
				var q Request
				part, err := v.Read(&q, a.off*PageBytes, a.n*PageBytes)
				if err != nil || part != a.n*PageBytes {
					t.Fatal(part, err)
				}
				handle(&q, part, a.dev)
				if err := v.Answer(&q, a.dev); err != nil && !errors.Is(err, ErrNoRoom) {
					t.Fatal(err)
				}
			}
			var col Collector
			res := r.Collect(k, &col)
			status(t, res, c.want, attrs.IDHint)
			devices(t, res, c.devices)
			if col.Lost() != c.lost {
				t.Errorf("%d answers lost, want %d", col.Lost(), c.lost)
			}
		})
	}
}

// TestOverflowEnds: answers that were lost once do not count for the next request.
func TestOverflowEnds(t *testing.T) {
	r, v := pair(t, Options{Bytes: 1 << 20})
	k := issue(t, r, 0, PageBytes, hint(1))
	r.at(0).set.overflow = 5
	var c Collector
	if r.Collect(k, &c); c.Lost() != 5 {
		t.Errorf("%d answers lost", c.Lost())
	}
	k = issue(t, r, 0, PageBytes, hint(1))
	serve(t, v, 0, PageBytes, dev1)
	status(t, r.Collect(k, &c), attrs.Handled, attrs.IDHint)
}

// TestHalfSet: a set of which a part belongs to another request is no set.
func TestHalfSet(t *testing.T) {
	r, v := pair(t, Options{Bytes: 1 << 20})
	s := hint(1)
	s.SetChecksum(attrs.Checksum{Algorithm: attrs.XXH64, Sums: sums(attrs.XXH64, 100)})
	k := issue(t, r, 0, 100*PageBytes, s)
	for _, spoil := range []struct {
		what  string
		how   func(s *setSlot)
		empty bool
	}{
		{"nothing", func(s *setSlot) {}, false},
		{"a later request", func(s *setSlot) { s.seq = k.seq + 1 }, true},
		{"no request", func(s *setSlot) { s.seq = 0 }, true},
		{"another start", func(s *setSlot) { s.start = 512 }, true},
		{"another size", func(s *setSlot) { s.setBytes = 16 }, true},
		{"another page", func(s *setSlot) { s.number = 2 }, true},
	} {
		was := r.at(1).set
		spoil.how(&r.at(1).set)
		var q Request
		if _, err := v.Read(&q, 0, 100*PageBytes); err != nil || !q.Given() ||
			q.Set.Empty() != spoil.empty {
			t.Errorf("%s: given %t, empty %t, %v", spoil.what, q.Given(), q.Set.Empty(), err)
		}
		r.at(1).set = was
	}
}

// TestWorstDevice: the answer of the half that did less counts.
func TestWorstDevice(t *testing.T) {
	r, v := pair(t, Options{Bytes: 1 << 20})
	k := issue(t, r, 0, PageBytes, hint(1))
	serve(t, v, 0, PageBytes, dev1)
	var q Request
	if _, err := v.Read(&q, 0, PageBytes); err != nil {
		t.Fatal(err)
	}
	handle(&q, PageBytes, dev2)
	q.Results.Ignore(attrs.IDHint, attrs.ReasonBusy)
	if err := v.Answer(&q, dev2); err != nil {
		t.Fatal(err)
	}
	var c Collector
	res := r.Collect(k, &c)
	status(t, res, attrs.Ignored, attrs.IDHint)
	status(t, res, attrs.Handled, attrs.IDTrace)
}

// TestStale: a server that is late answers the request that it has read, not the next in its pages.
func TestStale(t *testing.T) {
	r, v := pair(t, Options{Bytes: 1 << 20})
	var c Collector
	var late Request
	issue(t, r, 0, 2*PageBytes, hint(1)) // given up
	if _, err := v.Read(&late, 0, 2*PageBytes); err != nil {
		t.Fatal(err)
	}
	handle(&late, 2*PageBytes, dev1)
	k := issue(t, r, 0, 2*PageBytes, hint(2))
	if err := v.Answer(&late, dev1); !errors.Is(err, ErrNoRoom) {
		t.Errorf("a late answer: %v", err)
	}
	res := r.Collect(k, &c)
	status(t, res, attrs.NotHandled, attrs.IDHint, attrs.IDTrace)
	devices(t, res, 0)

	// Answers that are whole but for one word: begun and not finished, or for another request.
	for _, spoil := range []func(a *answerSlot){
		func(a *answerSlot) { a.done-- },
		func(a *answerSlot) { a.claim -= 1 << 32 },
		func(a *answerSlot) { a.claim &^= 1<<32 - 1 },
	} {
		k = issue(t, r, 0, PageBytes, hint(3))
		serve(t, v, 0, PageBytes, dev1)
		spoil(&r.at(0).answers[0])
		if res = r.Collect(k, &c); len(res.Devices()) != 0 {
			t.Errorf("an answer that was only begun counts: %v", res.Devices())
		}
	}
	// After Collect there is no place for an answer.
	if err := v.Answer(&late, dev1); !errors.Is(err, ErrNoRoom) {
		t.Errorf("an answer after the end: %v", err)
	}
}

// TestNoData is a request that has only a page, such as a flush.
func TestNoData(t *testing.T) {
	r, v := pair(t, Options{Bytes: 1 << 20})
	k := issue(t, r, 5*PageBytes, 0, hint(1))
	var q Request
	for _, dev := range []uint32{dev1, dev2} {
		if n, err := v.Read(&q, 5*PageBytes, 0); n != 0 || err != nil || !q.Given() {
			t.Fatal(n, err, q.Given())
		}
		handle(&q, 0, dev)
		if err := v.Answer(&q, dev); err != nil {
			t.Fatal(err)
		}
	}
	var c Collector
	res := r.Collect(k, &c)
	status(t, res, attrs.Handled, attrs.IDHint)
	devices(t, res, 2)
}

func TestIssueErrors(t *testing.T) {
	r, _ := pair(t, Options{Bytes: 1 << 20})
	var unencodable, long attrs.Set
	unencodable.SetHint(99)
	long.SetChecksum(attrs.Checksum{Algorithm: attrs.XXH64, Sums: sums(attrs.XXH64, 200)})
	for _, c := range []struct {
		off  int64
		n    int
		s    *attrs.Set
		want error
	}{
		{-1, 10, hint(1), ErrPlace},
		{0, 1<<20 + 1, hint(1), ErrPlace},
		{1 << 20, 0, hint(1), ErrPlace},
		{4096, 1 << 20, hint(1), ErrPlace},
		{0, 4096, &unencodable, attrs.ErrInvalid},
		{0, 4096, &long, attrs.ErrSpace},
	} {
		if _, err := r.Issue(c.off, c.n, c.s); !errors.Is(err, c.want) {
			t.Errorf("%d+%d: %v, want %v", c.off, c.n, err, c.want)
		}
	}
}

// TestRefused: memory that a server does not take.
func TestRefused(t *testing.T) {
	file := func(size int64, seals int, change func(b []byte)) int {
		fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		l := layoutOf(16, 8)
		b := make([]byte, headerBytes)
		l.encode(b)
		if change != nil {
			change(b)
		}
		if size == 0 {
			size = l.size
		}
		if err := unix.Ftruncate(fd, size); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Pwrite(fd, b[:min(headerBytes, size)], 0); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	put := func(at int, v uint32) func([]byte) {
		return func(b []byte) { le.PutUint32(b[at:], v) }
	}
	l := layoutOf(16, 8)
	for _, c := range []struct {
		name string
		fd   int
		max  int64
		want error
	}{
		{"good", file(0, needSeals, nil), 1 << 20, nil},
		{"exactly as much as allowed", file(0, needSeals, nil), 16 * PageBytes, nil},
		{"too much", file(0, needSeals, nil), 15 * PageBytes, ErrTooLarge},
		{"much too much", file(1<<40, needSeals, nil), 1 << 20, ErrTooLarge},
		{"no seals", file(0, 0, nil), 1 << 20, ErrSeals},
		{"may shrink", file(0, needSeals&^unix.F_SEAL_SHRINK, nil), 1 << 20, ErrSeals},
		{"may grow", file(0, needSeals&^unix.F_SEAL_GROW, nil), 1 << 20, ErrSeals},
		{"may be sealed", file(0, needSeals&^unix.F_SEAL_SEAL, nil), 1 << 20, ErrSeals},
		{"read-only", file(0, needSeals|unix.F_SEAL_WRITE, nil), 1 << 20, unix.EPERM},
		{"empty", file(1, needSeals, nil), 1 << 20, ErrLayout},
		{"shorter", file(l.size-PageBytes, needSeals, nil), 1 << 20, ErrLayout},
		{"longer", file(l.size+PageBytes, needSeals, nil), 1 << 20, ErrLayout},
		{"no magic", file(0, needSeals, put(headerMagic, 0)), 1 << 20, ErrLayout},
		{"version", file(0, needSeals, put(headerVersion, 2)), 1 << 20, ErrLayout},
		{"pages", file(0, needSeals, put(headerPages, 17)), 1 << 20, ErrLayout},
		{"no pages", file(0, needSeals, put(headerPages, 0)), 1 << 20, ErrLayout},
		{"pages, negative", file(0, needSeals, put(headerPages, 1<<31)), 1 << 20, ErrLayout},
		{"entries", file(0, needSeals, put(headerEntries, 7)), 1 << 20, ErrLayout},
		{"slots elsewhere", file(0, needSeals, put(headerSlots, 0)), 1 << 20, ErrLayout},
		{"data elsewhere", file(0, needSeals, put(headerData, 0)), 1 << 20, ErrLayout},
		{"ring elsewhere", file(0, needSeals, put(headerRing, 0)), 1 << 20, ErrLayout},
		{"flags", file(0, needSeals, put(headerFlags, 1)), 1 << 20, ErrLayout},
		{"page size", file(0, needSeals, put(headerPageBytes, 512)), 1 << 20, ErrLayout},
	} {
		v, err := Open(c.fd, c.max)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if err == nil {
			_ = v.Close()
		}
	}
	if _, err := Open(0, 1<<20); !errors.Is(err, ErrSeals) {
		t.Errorf("no memfd: %v", err)
	}
}
