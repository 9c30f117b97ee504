//go:build vm

package vmtest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"ubcache/attrs"
)

// attrCheck tries an attribute and looks at what the cache holds or did, and at what it does without
// the attribute.
type attrCheck struct {
	name string
	// says is what an issuer has to be able to say for it.
	says string
	do   func(b *attrBench)
}

var attrChecks = []attrCheck{
	{"hint=cache", "hint=cache", func(b *attrBench) {
		b.reluctant()
		without, off := b.fresh(), b.fresh()
		b.plainly(without)
		b.origin(without, attrs.OriginBacking, "a request without a hint")
		b.act(attrs.IDHint, off, "hint=cache")
		b.origin(off, attrs.OriginSSD, "hint=cache")
	}},
	{"hint=bypass", "hint=bypass", func(b *attrBench) { checkPast(b, "hint=bypass") }},
	{"hint=once", "hint=once", func(b *attrBench) { checkPast(b, "hint=once") }},
	{"hint=prefetch", "hint=prefetch", checkPrefetch},
	{"hint=pin, unpin", "hint=pin", checkPin},
	{"hint=evict", "hint=evict", func(b *attrBench) {
		off := b.fresh()
		b.plainly(off)
		Ubcache(b, "flush", "data")
		b.origin(off, attrs.OriginSSD, "a request without a hint")
		b.act(attrs.IDHint, off, "hint=evict")
		Wait(b, 10*time.Second, "the data is evicted", func() bool {
			return b.where(off) == attrs.OriginBacking
		})
	}},
	{"mode", "mode=writethrough", checkMode},
	{"prio", "prio=rt/1", checkPriority},
	{"checksum", "checksum=crc32c", checkChecksums},
	{"lifetime", "lifetime=short", func(b *attrBench) {
		// Where the data lies on the SSD is looked at in the end, when the cache is stopped.
		for _, text := range []string{"lifetime=short", "", "lifetime=short"} {
			off := b.fresh()
			if text == "" {
				if _, err := b.write(off, ""); err != nil {
					b.Error(err)
				}
				continue
			}
			b.handled(attrs.IDLifetime, true, off, text)
			if b.short != nil {
				b.short[off] = true
			}
		}
	}},
	{"tenant", "tenant=77", checkTenant},
	{"deadline", "deadline=1m", checkDeadline},
	{"timing", "timing", checkTiming},
	{"trace", "trace=1", func(b *attrBench) {
		id := uint64(time.Now().UnixNano())
		b.act(attrs.IDTrace, b.fresh(), fmt.Sprintf("trace=%d", id))
		if out := Ubcache(b, "--json", "trace"); !strings.Contains(out, fmt.Sprintf("%#x", id)) {
			b.Errorf("trace %d is not in\n%s", id, out)
		}
	}},
	{"unknown id", "0xf001=00", func(b *attrBench) {
		off := b.fresh()
		r, err := b.read(off, "0xf001=c0ffee")
		if err != nil || r.For(0xf001).Status != attrs.Unsupported {
			b.Errorf("%v, error %v, want unsupported", r.For(0xf001), err)
		}
		want := bytes.Clone(b.buf)
		Fill(b.buf, 99)
		if _, err := b.write(off, "0xf001=00,required:0xf001"); !errors.Is(err, attrs.ErrnoRefused) {
			b.Errorf("required and unknown: %v, want %v", err, attrs.ErrnoRefused)
		}
		if _, err := b.read(off, "hint=bypass"); err != nil || !bytes.Equal(b.buf, want) {
			b.Errorf("a refused write had an effect (%v)", err)
		}
	}},
}

// checkPast: what the hint keeps out of the cache would be in it otherwise.
func checkPast(b *attrBench, text string) {
	b.Helper()
	without, off := b.fresh(), b.fresh()
	b.plainly(without)
	b.origin(without, attrs.OriginSSD, "a request without a hint")
	b.act(attrs.IDHint, off, text)
	b.origin(off, attrs.OriginBacking, text)
}

// checkPrefetch: reads with the hint are cached, where others are not. It is for reads, so who can say
// it with a write only is told so, and if it is required nothing is written.
func checkPrefetch(b *attrBench) {
	b.reluctant()
	without, off := b.fresh(), b.fresh()
	b.plainly(without)
	b.origin(without, attrs.OriginBacking, "a request without a hint")
	if !b.writes {
		b.act(attrs.IDHint, off, "hint=prefetch")
		b.origin(off, attrs.OriginSSD, "hint=prefetch")
		return
	}
	before := b.c.Attributes(b).ByAttribute["hint"]
	if _, err := b.write(off, "hint=prefetch"); err != nil {
		b.Error(err)
	}
	if n := b.c.Attributes(b).ByAttribute["hint"].Ignored - before.Ignored; n != 1 {
		b.Errorf("hint=prefetch of a write was ignored %d times, want once", n)
	}
	b.origin(off, attrs.OriginBacking, "hint=prefetch of a write")
	want := bytes.Clone(b.look)
	if _, err := b.write(off, "hint=prefetch,required:hint"); !errors.Is(err, attrs.ErrnoRefused) {
		b.Errorf("required: %v, want %v", err, attrs.ErrnoRefused)
	}
	if b.where(off); !bytes.Equal(b.look, want) {
		b.Error("a refused write had an effect")
	}
}

// checkPin: what is pinned counts as that until it is unpinned, and beyond the quota nothing is.
func checkPin(b *attrBench) {
	off := b.fresh()
	pinned := func() int64 { return b.c.Device(b, "data").PinnedBytes }
	before := pinned()
	b.act(attrs.IDHint, off, "hint=pin")
	if n := pinned() - before; n != attrBytes {
		b.Errorf("%d bytes pinned, want %d", n, attrBytes)
	}
	b.origin(off, attrs.OriginSSD, "hint=pin")
	b.act(attrs.IDHint, off, "hint=unpin")
	if n := pinned(); n != before {
		b.Errorf("%d bytes pinned after unpin, %d before", n, before)
	}
	b.c.Set(b, "data", "pin-quota=0")
	defer b.c.Set(b, "data", "pin-quota=25")
	r, err := b.issue(b.writes, off, "hint=pin")
	if a := r.For(attrs.IDHint); err != nil || b.answers && !b.writes &&
		(a.Status != attrs.Ignored || a.Reason != attrs.ReasonQuota) {
		b.Errorf("hint=pin without a quota: %v, error %v", a, err)
	}
	if n := pinned(); n != before {
		b.Errorf("%d bytes pinned without a quota, %d before", n, before)
	}
}

func checkMode(b *attrBench) {
	Ubcache(b, "flush", "data")
	dirty := func() int64 { return b.c.Device(b, "data").DirtyBytes }
	through, around, before := b.fresh(), b.fresh(), dirty()
	b.handled(attrs.IDMode, true, through, "mode=writethrough")
	b.handled(attrs.IDMode, true, around, "mode=writearound")
	if n := dirty(); n != before {
		b.Errorf("%d bytes made dirty by writes past writeback", n-before)
	}
	b.origin(through, attrs.OriginSSD, "mode=writethrough")
	b.origin(around, attrs.OriginBacking, "mode=writearound")
	b.handled(attrs.IDMode, true, b.fresh(), "mode=writeback")
	if n := dirty() - before; n != attrBytes {
		b.Errorf("%d bytes made dirty by writeback, want %d", n, attrBytes)
	}
}

// checkTenant: the request is on the tenant's account, and beyond its quota nothing is cached.
func checkTenant(b *attrBench) {
	before := b.c.Attributes(b).ByTenant["77"]
	b.act(attrs.IDTenant, b.fresh(), "tenant=77")
	if n := b.c.Attributes(b).ByTenant["77"].Bytes - before.Bytes; n != attrBytes {
		b.Errorf("%d bytes on the tenant's account, want %d", n, attrBytes)
	}
	within, beyond := b.fresh(), b.fresh()
	who := fmt.Sprint(within)
	Ubcache(b, "tenant", "set", who, "--quota", fmt.Sprint(attrBytes))
	defer Ubcache(b, "tenant", "del", who)
	b.act(attrs.IDTenant, within, "tenant="+who)
	b.origin(within, attrs.OriginSSD, "a request within the quota")
	if _, err := b.issue(b.writes, beyond, "tenant="+who); err != nil {
		b.Error(err)
	}
	b.origin(beyond, attrs.OriginBacking, "a request beyond the quota")
}

func checkDeadline(b *attrBench) {
	if r := b.act(attrs.IDDeadline, b.fresh(), "deadline=1m"); r.For(attrs.IDDeadline).Reason != attrs.ReasonNone {
		b.Errorf("a deadline in a minute: %v", r.For(attrs.IDDeadline))
	}
	off := b.fresh()
	r, err := b.issue(b.writes, off, "deadline=1us")
	switch {
	case errors.Is(err, attrs.ErrnoDeadline):
		if b.writes {
			b.origin(off, attrs.OriginBacking, "a write that was too late")
		}
	case b.writes || r.For(attrs.IDDeadline).Reason != attrs.ReasonOverdue:
		b.Errorf("a deadline that cannot be met: %v, error %v", r.For(attrs.IDDeadline), err)
	}
}

// checkTiming: the times are as long as they can be, and where the data came from.
func checkTiming(b *attrBench) {
	if b.writes {
		checkTimingByRule(b)
		return
	}
	off, began := b.fresh(), time.Now()
	r := b.act(attrs.IDTiming, off, "hint=cache,timing")
	took := time.Since(began)
	miss, _ := r.Timing()
	r = b.act(attrs.IDTiming, off, "timing")
	hit, _ := r.Timing()
	if miss.Backing <= 0 || miss.Total < miss.Backing || miss.Total > took {
		b.Errorf("a miss that took %v from outside: %+v", took, miss)
	}
	if hit.SSD <= 0 || hit.Backing != 0 || hit.Total < hit.SSD {
		b.Errorf("a hit: %+v", hit)
	}
}

// checkTimingByRule is for a channel that carries attributes with writes and answers with reads: a rule
// asks, and the answer comes beside the data.
func checkTimingByRule(b *attrBench) {
	b.act(attrs.IDTiming, b.fresh(), "timing")
	Ubcache(b, "rule", "add", "data", "--name", "timed", "--min-size", "4K", "--read", "--set", "timing")
	defer Ubcache(b, "rule", "del", "data", "timed")
	off, began := b.fresh(), time.Now()
	r, err := b.read(off, "")
	took := time.Since(began)
	t, ok := r.Timing()
	if err != nil || !ok || t.Total <= 0 || t.Total > took || r.Origin != attrs.OriginBacking {
		b.Errorf("a miss that took %v from outside: %+v %v, from %v, error %v", took, t, ok, r.Origin, err)
	}
}

// checkChecksums: right ones pass and are returned, wrong ones fail a write without effect, and a read.
func checkChecksums(b *attrBench) {
	off := b.fresh()
	for _, a := range []attrs.Algorithm{attrs.XXH64, attrs.CRC32C, attrs.CRC64NVMe} {
		Fill(b.buf, uint64(a))
		want := bytes.Clone(b.buf)
		good := attrs.Checksum{Algorithm: a, Sums: a.AppendSums(nil, b.buf), Return: true}
		var set attrs.Set
		set.SetChecksum(good)
		r, err := b.do(b, true, off, &set)
		if _, sums := r.Checksums(); err != nil || r.For(attrs.IDChecksum).Status != attrs.Handled ||
			!bytes.Equal(sums, good.Sums) {
			b.Errorf("%v: %v, error %v, returned %x, want %x", a, r.For(attrs.IDChecksum), err, sums, good.Sums)
		}
		b.buf[5*attrs.BlockSize] ^= 1
		r, err = b.do(b, true, off, &set)
		if block, bad := r.Mismatch(); !errors.Is(err, attrs.ErrnoMismatch) || !bad || block != 5 {
			b.Errorf("%v: write of other data: %v, block %d %v", a, err, block, bad)
		}
		r, err = b.do(b, false, off, &set)
		if err != nil || r.For(attrs.IDChecksum).Status != attrs.Handled || !bytes.Equal(b.buf, want) {
			b.Errorf("%v: after a write that was refused: %v, error %v, or other data", a,
				r.For(attrs.IDChecksum), err)
		}
		bad := good
		bad.Sums = bytes.Clone(good.Sums)
		bad.Sums[2*a.Width()] ^= 1
		set.SetChecksum(bad)
		r, err = b.do(b, false, off, &set)
		if block, no := r.Mismatch(); !errors.Is(err, attrs.ErrnoMismatch) || !no || block != 2 {
			b.Errorf("%v: read of other data: %v, block %d %v", a, err, block, no)
		}
	}
}
