package attrs

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestBegin(t *testing.T) {
	two := "checksum=crc32c:00000001:00000002"
	for _, c := range []struct {
		name, text string
		q          Request
		id         ID
		want       Answer // without sources
	}{
		{"read", "hint=once", Request{Read, 0, 4096}, IDHint, Answer{}},
		{"mode of a write", "mode=writeback", Request{Write, 0, 4096}, IDMode, Answer{}},
		{
			"mode of a read", "mode=writeback",
			Request{Read, 0, 4096},
			IDMode,
			Answer{Status: Ignored, Reason: ReasonDirection},
		},
		{
			"lifetime of a read", "lifetime=short",
			Request{Read, 0, 4096},
			IDLifetime,
			Answer{Status: Ignored, Reason: ReasonDirection},
		},
		{"two checksums", two, Request{Write, 4096, 8192}, IDChecksum, Answer{}},
		{
			"three blocks", two,
			Request{Write, 4096, 12288},
			IDChecksum,
			Answer{Status: Invalid, Reason: ReasonCount},
		},
		{"one block", two, Request{Read, 4096, 4096}, IDChecksum, Answer{Status: Invalid, Reason: ReasonCount}},
		{
			"unaligned start", two,
			Request{Write, 512, 8192},
			IDChecksum,
			Answer{Status: Ignored, Reason: ReasonAlignment},
		},
		{
			"unaligned end", "checksum=xxh64",
			Request{Read, 0, 512},
			IDChecksum,
			Answer{Status: Ignored, Reason: ReasonAlignment},
		},
		{
			"no data", "checksum=xxh64",
			Request{Read, 0, 0},
			IDChecksum,
			Answer{Status: Ignored, Reason: ReasonAlignment},
		},
		{"1 MiB", "checksum=xxh64", Request{Read, 0, 1 << 20}, IDChecksum, Answer{}},
		{
			"above 1 MiB", "checksum=xxh64",
			Request{Read, 0, 1<<20 + 4096},
			IDChecksum,
			Answer{Status: Ignored, Reason: ReasonTooLarge},
		},
		{
			"private id", "0xf001=aa",
			Request{Read, 0, 4096},
			0xf001,
			Answer{Status: Unsupported, Reason: ReasonUnknown},
		},
	} {
		s := parsed(t, c.text)
		var r Results
		r.SetTiming(Timing{Total: 1}) // must be gone
		r.Begin(s, c.q, 3)
		got := r.For(c.id)
		if c.id.Known() && got.Source != SourceExplicit {
			t.Errorf("%s: source %v", c.name, got.Source)
		}
		if got.Status != c.want.Status || got.Reason != c.want.Reason {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if r.Pending(s, c.id) != (c.want.Status == NotHandled) {
			t.Errorf("%s: pending %t", c.name, r.Pending(s, c.id))
		}
		if _, ok := r.Timing(); ok || !slices.Equal(r.Devices(), []Device{3}) || r.Origin != OriginNone ||
			r.Blocks != uint32((c.q.Bytes+4095)/4096) {
			t.Errorf("%s: %v", c.name, &r)
		}
	}
}

// TestSilence: the zero value says of everything that nobody handled it.
func TestSilence(t *testing.T) {
	var r Results
	for _, id := range []ID{0, IDHint, IDTrace, 100, 0xf001} {
		if r.For(id) != (Answer{}) || NotHandled != 0 {
			t.Errorf("%v: %v", id, r.For(id))
		}
	}
	if len(r.Devices()) != 0 || r.Origin != OriginUnknown {
		t.Error("silence names an origin or a device")
	}
	if _, ok := r.Timing(); ok {
		t.Error("silence has times")
	}
	if _, bad := r.Mismatch(); bad {
		t.Error("silence has a mismatch")
	}
	if _, sums := r.Checksums(); sums != nil {
		t.Error("silence has checksums")
	}
}

// TestCombineStatus combines every pair of statuses, in pieces and in mirrors, of known and of unknown ids.
func TestCombineStatus(t *testing.T) {
	worst := []Status{Handled, Ignored, NotHandled, Unsupported, Invalid}
	make1 := func(st Status) Results {
		var r Results
		if st == NotHandled {
			return r
		}
		r.Begin(parsed(t, "trace=1,0xf001=aa"), Request{Read, 0, 4096}, 1)
		r.Answer(IDTrace, st, ReasonNone)
		r.Answer(0xf001, st, ReasonNone)
		return r
	}
	for i, a := range worst {
		for j, b := range worst {
			for _, join := range []bool{false, true} {
				r, o := make1(a), make1(b)
				if join {
					r.Join(&o)
				} else {
					r.Combine(&o)
				}
				want := worst[max(i, j)]
				if got := r.For(IDTrace).Status; got != want {
					t.Errorf("%v and %v: %v", a, b, got)
				}
				if got := r.For(0xf001).Status; got != want {
					t.Errorf("%v and %v, unknown id: %v", a, b, got)
				}
			}
		}
	}
}

func TestCombineUnknown(t *testing.T) {
	var a, b Results
	a.Begin(parsed(t, "0xf001,0xf003"), Request{Read, 0, 4096}, 1)
	b.Begin(parsed(t, "0xf000,0xf001,0xf004"), Request{Read, 0, 4096}, 1)
	a.Answer(0xf003, Handled, ReasonNone) // but b says nothing of it
	a.Combine(&b)
	if a.nUnknown != 3 {
		t.Errorf("%d are kept", a.nUnknown)
	}
	for id, want := range map[ID]Status{
		0xf000: Unsupported, 0xf001: Unsupported, 0xf003: NotHandled, 0xf004: Unsupported,
	} {
		if got := a.For(id).Status; got != want {
			t.Errorf("%v: %v, want %v", id, got, want)
		}
	}
}

func TestCombineRest(t *testing.T) {
	piece := func(blocks uint32, o Origin, dev Device, tm Timing) Results {
		var r Results
		r.Begin(parsed(t, "timing,hint=once"), Request{Read, 0, int64(blocks) * 4096}, dev)
		r.Origin = o
		r.SetTiming(tm)
		r.Handle(IDHint)
		return r
	}
	r := piece(2, OriginSSD, 1, Timing{5, 20, 0, 30})
	for _, p := range []Results{
		piece(3, OriginSSD, 2, Timing{7, 10, 0, 20}), piece(1, OriginNone, 1, Timing{1, 0, 9, 11}),
	} {
		r.Combine(&p)
	}
	if tm, ok := r.Timing(); !ok || tm != (Timing{7, 20, 9, 30}) {
		t.Errorf("times %v", tm)
	}
	if r.Blocks != 6 || r.Origin != OriginSSD || !slices.Equal(r.Devices(), []Device{1, 2}) {
		t.Errorf("%v", &r)
	}
	other := piece(6, OriginBacking, 9, Timing{})
	r.Join(&other)
	if r.Blocks != 6 || r.Origin != OriginMixed || !slices.Equal(r.Devices(), []Device{1, 2, 9}) {
		t.Errorf("joined: %v", &r)
	}
	silent := Results{Blocks: 1}
	r.Combine(&silent)
	if r.For(IDHint).Status != NotHandled || r.Origin != OriginUnknown || len(r.Devices()) != 3 {
		t.Errorf("with a silent piece: %v", &r)
	}
	for d := range Device(2 * MaxDevices) {
		p := piece(1, OriginSSD, 100+d, Timing{})
		r.Combine(&p)
	}
	if len(r.Devices()) != MaxDevices {
		t.Errorf("%d devices", len(r.Devices()))
	}
	unreadable := Results{resultsHead: resultsHead{frame: ReasonOrder}}
	r.Combine(&unreadable)
	if r.Frame() != ReasonOrder {
		t.Errorf("frame %v", r.Frame())
	}
}

func TestOrigin(t *testing.T) {
	u, n, s, b, m := OriginUnknown, OriginNone, OriginSSD, OriginBacking, OriginMixed
	for _, c := range [][3]Origin{
		{u, u, u},
		{u, n, u},
		{u, s, u},
		{u, m, u},
		{n, n, n},
		{n, s, s},
		{n, m, m},
		{s, s, s},
		{s, b, m},
		{s, OriginRAM, m},
		{m, s, m},
		{m, m, m},
	} {
		if c[0].And(c[1]) != c[2] || c[1].And(c[0]) != c[2] {
			t.Errorf("%v and %v: %v, %v", c[0], c[1], c[0].And(c[1]), c[1].And(c[0]))
		}
	}
}

// sumPiece is the handled answer for a piece of n blocks that returned sums.
func sumPiece(n int, sums []byte) Results {
	var s Set
	s.SetChecksum(Checksum{Algorithm: CRC32C, Return: true})
	var r Results
	r.Begin(&s, Request{Read, 0, int64(n) * 4096}, 1)
	r.SetChecksums(CRC32C, sums)
	return r
}

func TestCombineChecksums(t *testing.T) {
	all := []byte{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0}
	// The pieces' sums lie side by side in the place for the whole.
	place := bytes.Clone(all)
	r, p := sumPiece(1, place[:4]), sumPiece(2, place[4:])
	r.Combine(&p)
	if a, sums := r.Checksums(); a != CRC32C || !bytes.Equal(sums, all) || &sums[0] != &place[0] {
		t.Errorf("side by side: %v", &r)
	}
	// They lie elsewhere, and the first has room.
	place = append(make([]byte, 0, 12), all[:4]...)
	r, p = sumPiece(1, place), sumPiece(2, bytes.Clone(all[4:]))
	r.Combine(&p)
	if _, sums := r.Checksums(); !bytes.Equal(sums, all) {
		t.Errorf("appended: %v", &r)
	}
	// No room.
	r, p = sumPiece(1, bytes.Clone(all[:4])[:4:4]), sumPiece(2, all[4:])
	r.Combine(&p)
	if _, sums := r.Checksums(); sums != nil || r.For(IDChecksum).Reason != ReasonSpace {
		t.Errorf("no room: %v", &r)
	}
	// One did not return any.
	r, p = sumPiece(1, bytes.Clone(all)[:4]), sumPiece(2, nil)
	p.Ignore(IDChecksum, ReasonDegraded)
	r.Combine(&p)
	if _, sums := r.Checksums(); sums != nil || r.For(IDChecksum).Reason != ReasonDegraded {
		t.Errorf("one ignored: %v", &r)
	}
	// Two algorithms.
	r, p = sumPiece(2, bytes.Clone(all)[:8]), sumPiece(1, nil)
	p.SetChecksums(XXH64, make([]byte, 8))
	r.sums = append(make([]byte, 0, 64), r.sums...)
	r.Combine(&p)
	if _, sums := r.Checksums(); sums != nil || r.For(IDChecksum).Status != Ignored {
		t.Errorf("two algorithms: %v", &r)
	}
	// More than a set may have.
	place = make([]byte, 4*(MaxBlocks+1))
	r, p = sumPiece(MaxBlocks, place[:4*MaxBlocks]), sumPiece(1, place[4*MaxBlocks:])
	r.Combine(&p)
	if _, sums := r.Checksums(); sums != nil {
		t.Errorf("%d bytes of checksums", len(sums))
	}
	// Mirrors agree, or not.
	r, p = sumPiece(3, all), sumPiece(3, bytes.Clone(all))
	r.Join(&p)
	if _, sums := r.Checksums(); !bytes.Equal(sums, all) || r.For(IDChecksum).Status != Handled {
		t.Errorf("mirrors: %v", &r)
	}
	p = sumPiece(3, make([]byte, 12))
	r.Join(&p)
	if _, sums := r.Checksums(); sums != nil || r.For(IDChecksum).Reason != ReasonDiffers {
		t.Errorf("mirrors that differ: %v", &r)
	}
}

func TestCombineMismatch(t *testing.T) {
	good := sumPiece(3, nil)
	bad := sumPiece(2, nil)
	bad.SetMismatch(CRC32C, 1)
	r := good
	r.Combine(&bad)
	r.Combine(&bad)
	if block, ok := r.Mismatch(); !ok || block != 4 || r.Blocks != 7 {
		t.Errorf("after good: block %d, %t of %d", block, ok, r.Blocks)
	}
	r = bad
	r.Combine(&good)
	if block, ok := r.Mismatch(); !ok || block != 1 {
		t.Errorf("before good: block %d, %t", block, ok)
	}
	// What is worse hides it, and its block.
	r = bad
	ignored := good
	ignored.Ignore(IDChecksum, ReasonDegraded)
	r.Combine(&ignored)
	if block, ok := r.Mismatch(); ok || block != 0 || r.For(IDChecksum).Reason != ReasonDegraded {
		t.Errorf("with an ignored piece: block %d, %t, %v", block, ok, &r)
	}
	r = good
	r.Join(&bad)
	if block, ok := r.Mismatch(); !ok || block != 1 {
		t.Errorf("joined: block %d, %t", block, ok)
	}
}

func TestSetChecksumsRefuses(t *testing.T) {
	for _, n := range []int{3, 4*MaxBlocks + 4} {
		r := sumPiece(1, make([]byte, n))
		if _, sums := r.Checksums(); sums != nil || r.For(IDChecksum).Reason != ReasonSpace {
			t.Errorf("%d bytes: %v", n, &r)
		}
	}
}

func TestCheckRequired(t *testing.T) {
	for _, c := range []struct {
		text   string
		answer func(*Results)
		id     ID
		errno  unix.Errno
	}{
		{"hint=once", func(*Results) {}, 0, 0},
		{"hint=once,required:hint", func(r *Results) { r.Handle(IDHint) }, 0, 0},
		{"hint=once,required:hint", func(*Results) {}, IDHint, ErrnoRefused},
		{"hint=once,required:hint", func(r *Results) { r.Ignore(IDHint, ReasonMode) }, IDHint, ErrnoRefused},
		{
			"hint=once,required:hint",
			func(r *Results) { r.Answer(IDHint, Unsupported, ReasonKernel) }, IDHint, ErrnoRefused,
		},
		{"hint=once,trace=1,required:hint", func(r *Results) { r.Handle(IDHint) }, 0, 0},
		{"mode=writeback,required:mode", func(*Results) {}, IDMode, ErrnoRefused}, // a read
		{"checksum=xxh64:0000000000000001,required:checksum", func(*Results) {}, IDChecksum, ErrnoInvalid},
		{"0xf001,0xf002,required:0xf002", func(*Results) {}, 0xf002, ErrnoRefused},
		{"0xf001,required:0xf001", func(r *Results) { r.Answer(0xf001, Handled, ReasonNone) }, 0, 0},
	} {
		s := parsed(t, c.text)
		var r Results
		r.Begin(s, Request{Read, 0, 8192}, 1)
		c.answer(&r)
		if id, errno := s.CheckRequired(&r); id != c.id || errno != c.errno {
			t.Errorf("%s: %v, %v; want %v, %v", c.text, id, errno, c.id, c.errno)
		}
	}
	// What nobody answered is refused, too.
	if id, errno := parsed(t, "hint=once,required:hint").CheckRequired(&Results{}); errno != ErrnoRefused {
		t.Errorf("silence: %v, %v", id, errno)
	}
}

// TestErrnos: each one must reach the client as it is, and make nobody try again.
func TestErrnos(t *testing.T) {
	// Those that errno_to_blk_status and back keep, without the two that io_uring issues again.
	kept := []unix.Errno{
		unix.ETIMEDOUT, unix.ENOSPC, unix.ENOLINK, unix.EREMOTEIO, unix.EBADE, unix.ENODATA, unix.EILSEQ,
		unix.ENOMEM, unix.EBUSY, unix.ENODEV, unix.ETOOMANYREFS, unix.EOVERFLOW, unix.ETIME, unix.EINVAL,
	}
	seen := map[unix.Errno]bool{}
	for _, e := range []unix.Errno{ErrnoRefused, ErrnoInvalid, ErrnoMismatch, ErrnoDeadline} {
		if !slices.Contains(kept, e) || e == unix.EAGAIN || e == unix.EOPNOTSUPP || seen[e] {
			t.Errorf("errno %d (%v)", int(e), e)
		}
		seen[e] = true
	}
}

func TestNegativeTimes(t *testing.T) {
	var r Results
	r.SetTiming(Timing{-1, -2, time.Second, -4})
	if tm, _ := r.Timing(); tm != (Timing{0, 0, time.Second, 0}) {
		t.Errorf("%v", tm)
	}
}
