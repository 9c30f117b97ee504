package daemon

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/header"
	"ubcache/internal/report"
)

// A backing device that was used without the cache, mounted raw for instance, has newer data than the
// cache. It is noticed at the next start by these things:
//
//   - The fingerprint: a hash over places of the device that change when it is used. It is taken, and goes
//     to the superblock of the cache, when the cache is stopped in order, and compared only after such
//     a stop. What the device itself holds is hashed, so that dirty data, which is not there yet, does not
//     matter.
//   - Samples: blocks that are clean in the cache, which the device must have, too, whatever happened.
//     They are compared after every stop and crash. That cannot give a false alarm, since a clean copy is
//     taken out of the cache, durably, before the device is changed under it; without data checksums an SSD
//     that returns something else does.
//   - The filesystem, or partition table, whose UUID goes to the superblock with the fingerprint if nothing is dirty.
//   - The epoch in the backing header, where there is one: each start writes its own there, so that an
//     older copy of the device, restored perhaps, is told from it.
//
// If nothing of the device is dirty in the cache, what is cached of it is dropped, and the cache goes on.
// Otherwise the start is refused: neither has everything. The operator decides with start --drop or --keep,
// perhaps after ubcache salvage.
//
// Where there is nothing to compare, after a crash, it is not known. What is cached is dropped then, too: it is of little use,
// as there is not one whole clean block among it, and could be stale. With dirty data the start warns: writeback will go over
// whatever is there.

const (
	// printKind is how the fingerprint is made; another way has another number.
	printKind = 1
	// ManySamples is how many clean blocks are compared besides those at the start of the device after a
	// stop in order and by salvage, fewSamples after a crash, when somebody waits for the device.
	ManySamples = 64
	fewSamples  = 8

	printHead   = 2 << 20   // the start: superblocks, partition tables, LVM; the first partition's
	printTail   = 128 << 10 // the end: RAID, the second GPT
	printPart   = 128 << 10 // the start of a partition
	printSpots  = 32        // blocks spread over the device
	printBlock  = 4096
	maxPrinted  = 64 // partitions
	gptEntryLen = 128
)

// fingerprint hashes what changes on a device when it is used, but for the backing header, which is looked
// at by itself.
func fingerprint(d *blockdev.Device) (cache.Fingerprint, error) {
	h := xxhash.New()
	size := d.Size()
	add := func(off, n int64) error {
		off = min(off, size) / printBlock * printBlock
		n = min(n, size-off)
		p := make([]byte, n)
		if _, err := d.ReadAt(p, off); err != nil {
			return fmt.Errorf("fingerprint %s: %w", d.Info.Path, err)
		}
		var at [16]byte
		binary.LittleEndian.PutUint64(at[:], uint64(off))
		binary.LittleEndian.PutUint64(at[8:], uint64(n))
		_, _ = h.Write(at[:])
		_, _ = h.Write(p)
		return nil
	}
	head := make([]byte, min(printHead, size))
	if _, err := d.ReadAt(head, 0); err != nil {
		return cache.Fingerprint{}, fmt.Errorf("fingerprint %s: %w", d.Info.Path, err)
	}
	if _, err := header.Read(d); err == nil {
		header.Blank(head)
	}
	_, _ = h.Write(head)
	for _, off := range partitions(head, int64(d.Info.LogicalBytes)) {
		if off >= printHead {
			if err := add(off, printPart); err != nil {
				return cache.Fingerprint{}, err
			}
		}
	}
	for i := range int64(printSpots) {
		if err := add(size/printSpots*i, printBlock); err != nil {
			return cache.Fingerprint{}, err
		}
	}
	if err := add(max(0, size-printTail), printTail); err != nil {
		return cache.Fingerprint{}, err
	}
	return cache.Fingerprint{Kind: printKind, Sum: h.Sum64(), Time: time.Now()}, nil
}

// partitions finds where the partitions of a GPT or MBR begin, in bytes.
func partitions(head []byte, sector int64) (list []int64) {
	le := binary.LittleEndian
	if len(head) < 64<<10 || sector <= 0 {
		return nil
	}
	if string(head[sector:sector+8]) == "EFI PART" {
		table, n, each := int64(le.Uint64(head[sector+72:]))*sector, le.Uint32(head[sector+80:]), int64(le.Uint32(head[sector+84:]))
		for i := range int64(min(n, maxPrinted)) {
			at := table + i*each
			if each < gptEntryLen || at < 0 || at+gptEntryLen > int64(len(head)) {
				break
			}
			if first := int64(le.Uint64(head[at+32:])); first > 0 && first < 1<<50 {
				list = append(list, first*sector)
			}
		}
	} else if head[510] == 0x55 && head[511] == 0xaa {
		for at := 446; at < 510; at += 16 {
			if head[at+4] != 0 {
				list = append(list, int64(le.Uint32(head[at+8:]))*sector)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// SamePrint reports whether a fingerprint was taken at the last stop in order, and whether a device has it.
func SamePrint(d *blockdev.Device, sb *cache.Superblock, r *cache.BackingRecord) (taken, match bool) {
	if !sb.Clean || r.Print.Kind != printKind {
		return false, false
	}
	p, err := fingerprint(d)
	return true, err == nil && p.Sum == r.Print.Sum
}

// verdict is what becomes of what is cached of a backing device.
type verdict struct {
	r    *cache.BackingRecord
	s    *served
	drop bool
	text string // for the log; empty if there is nothing to say
	args []any
}

// confirmUnused is asked before what was loaded of a cache is used: it finds the backing devices that were
// changed without it. A start that is refused changes none of them: first all is decided, then headers are written.
func (in *Instance) confirmUnused(c *cache.Cache) (drop []cache.BackingID, err error) {
	sb := c.Super()
	var all []*verdict
	for i := range sb.Backings {
		v, err := in.judge(c, &sb, &sb.Backings[i])
		if err != nil {
			return nil, err
		}
		if v != nil {
			all = append(all, v)
		}
	}
	for _, v := range all {
		if v.text != "" {
			in.log.Warn(v.text, append([]any{"name", v.s.name}, v.args...)...)
		}
		if v.drop {
			drop = append(drop, v.r.ID)
		}
		if err := errors.Join(c.SetPrint(v.r.ID, cache.Fingerprint{}), in.newHeader(c, &sb, v.r, v.s)); err != nil {
			return nil, err
		}
	}
	return drop, nil
}

// judge decides about one backing device; nil if that is left for when it is back.
func (in *Instance) judge(c *cache.Cache, sb *cache.Superblock, r *cache.BackingRecord) (*verdict, error) {
	s := in.mu.served[r.ID]
	if s == nil {
		return nil, nil
	}
	v := &verdict{r: r, s: s}
	dirty := c.DirtyBlocks(r.ID)
	if slices.Contains(in.opts.Drop, s.name) {
		v.drop, v.text = true, "what is cached of the backing device is dropped, as start --drop says"
		v.args = []any{"dirty_blocks", dirty}
		return v, nil
	}
	if slices.Contains(in.doubted, r.UUID) {
		if dirty > 0 && in.newer != nil && in.nameOf(r) != "" {
			return nil, report.Refuse("open cache on "+in.ssdInfo.Path, fmt.Sprintf("it is an older copy of the SSD, with %s "+
				"of %s that was not written back when it was made", config.Size(dirty*cache.BlockSize).Human(), s.name),
				fmt.Sprintf("ubcache salvage writes that to an image; start --drop %s goes on with what the disk has, start "+
					"--keep %[1]s with what this copy has", s.name))
		}
		if dirty > 0 && in.newer == nil {
			return nil, report.Refuse("open backing device "+s.name, fmt.Sprintf("%s was changed without the SSD, "+
				"which has %s of it that was never written back", s.name, config.Size(dirty*cache.BlockSize).Human()),
				"it is kept: ubcache salvage writes it to an image, ubcache start --drop "+s.name+" gives it up")
		}
		in.drop = append(in.drop, r.UUID)
		v.drop, v.text = true, "the SSD has missed changes of this device: its copies are dropped"
		return v, nil
	}
	if s.dev == nil { // the fingerprint stays for when it is back
		return nil, nil
	}
	why := ""
	if !slices.Contains(in.drop, r.UUID) { // else it is known, and nothing of it is cached any more
		why = in.usedRaw(c, r, s.name, s.dev, sb.Clean, in.nextEpoch(sb))
	}
	switch {
	case why == "":
		return v, nil
	case slices.Contains(in.opts.Keep, s.name):
		v.text = "the backing device was changed without the cache; what is cached is kept, as start --keep says"
	case dirty == 0:
		v.drop, v.text = true, dropText(why)
	default:
		return nil, report.Refuse("open backing device "+s.name, fmt.Sprintf("%s was changed without the cache (%s), "+
			"which has %s of newer data for it", s.dev.Info.Path, why, config.Size(dirty*cache.BlockSize).Human()),
			fmt.Sprintf("ubcache salvage saves that elsewhere; then start --drop %s forgets it, or start --keep %s "+
				"puts it over the changes", s.name, s.name))
	}
	v.args = []any{"found", why}
	return v, nil
}

// dropped are the backing devices that start --drop names.
func (in *Instance) dropped() (ids []cache.BackingID) {
	for id, s := range in.mu.served {
		if slices.Contains(in.opts.Drop, s.name) {
			ids = append(ids, id)
		}
	}
	return ids
}

// nothingShows is what usedRaw returns if there is nothing to compare.
const nothingShows = "no header tells, and nothing clean is cached that could be compared"

// dropText is for the log, when what is cached of a device is dropped.
func dropText(why string) string {
	if why == nothingShows {
		return "nothing shows whether the backing device was used without the cache; what is cached of it is dropped " +
			"(attach --header would show it)"
	}
	return "the backing device was changed without the cache; what is cached of it is dropped"
}

// usedRaw says by what it is noticed that a backing device was changed without the cache; empty if it is not. Nobody may use the
// device yet. next is the epoch of a start that did not come to its end. With nothing to compare it warns if
// there is dirty data, else it returns nothingShows if anything is cached.
func (in *Instance) usedRaw(c *cache.Cache, r *cache.BackingRecord, name string, dev *blockdev.Device,
	thorough bool, next uint64,
) string {
	h, err := header.Read(dev)
	compared := err == nil && r.DataOff != 0 && r.Head != 0
	if compared && h.Start != r.Head && h.Start != next {
		return fmt.Sprintf("its header is of start %d of the cache instead of %d", h.Start, r.Head)
	}
	if want := r.Identity; r.Print.Kind != 0 && want.FSUUID != "" {
		if now, err := dev.Probe(); err == nil && now.UUID != "" && now.UUID != want.FSUUID {
			return fmt.Sprintf("it holds %s instead of %s with uuid %s", now, want.FSType, want.FSUUID)
		}
	}
	n := fewSamples
	if thorough {
		n = ManySamples
	}
	if r.Print.Kind == printKind {
		p, err := fingerprint(dev)
		switch {
		case err != nil:
			in.log.Warn("backing device not compared with its fingerprint", "name", name, "error", err)
		case p.Sum != r.Print.Sum:
			return "it is not as it was at the stop of " + r.Print.Time.UTC().Format("2006-01-02T15:04:05Z")
		default:
			compared = true
		}
	}
	same, differ, err := CompareSamples(dev, in.samples(c, r, n), 0)
	if err != nil {
		in.log.Warn("backing device not compared with what is cached", "name", name, "error", err)
	}
	if differ > 0 {
		return fmt.Sprintf("%d of %d blocks compared are not as they were", differ, same+differ)
	}
	if same > 0 || compared || slices.Contains(in.opts.Keep, name) {
		return ""
	}
	if dirty := c.DirtyBlocks(r.ID); dirty > 0 {
		text := fmt.Sprintf("%s: nothing shows whether it was used without the cache; if it was, %s of newer data in the "+
			"cache will go over that (attach --header prevents such use)", name, config.Size(dirty*cache.BlockSize).Human())
		in.log.Warn(text)
		if in.bg == nil { // else it is long since anybody has listened
			in.opts.Note(text)
		}
		return ""
	}
	if thorough || c.Loading().Running || hasClean(c, r.ID) { // not all of the index is loaded, perhaps
		return nothingShows
	}
	return ""
}

// newHeader writes the epoch of this start to the backing header, before the superblock gets it: a crash
// in between leaves a header that the next start expects, see usedRaw.
func (in *Instance) newHeader(c *cache.Cache, sb *cache.Superblock, r *cache.BackingRecord, s *served) error {
	if r.DataOff == 0 || s.dev == nil {
		return nil
	}
	h, err := header.Read(s.dev)
	if err == nil {
		h.Start = in.nextEpoch(sb)
		err = header.Write(s.dev, h)
	}
	if err != nil { // perhaps one copy has it
		in.log.Warn("backing header not written", "name", s.name, "error", err)
		return c.SetHead(r.ID, 0)
	}
	return c.SetHead(r.ID, h.Start)
}

// takePrints puts the fingerprints of the backing devices into the superblock, when the cache is about to
// be closed in order.
func (in *Instance) takePrints() {
	for _, st := range in.cache.Status().Backings {
		in.mu.Lock()
		s := in.mu.served[st.ID]
		in.mu.Unlock()
		if s == nil {
			continue
		}
		if s.dev == nil {
			continue // as it was at the start: none, or still that of the last stop
		}
		f := cache.Fingerprint{}
		err := s.dev.Sync()
		if err == nil {
			f, err = fingerprint(s.dev)
		}
		if err != nil {
			in.log.Warn("no fingerprint of backing device", "name", s.name, "error", err)
			f = cache.Fingerprint{}
		}
		if err := in.cache.SetPrint(st.ID, f); err != nil {
			in.log.Warn("fingerprint of backing device not recorded", "name", s.name, "error", err)
		}
	}
}
