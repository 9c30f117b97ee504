package daemon

import (
	"fmt"
	"slices"
	"strings"

	"ubcache/cache"
	"ubcache/internal/missed"
	"ubcache/internal/report"
)

// An SSD that is an older copy of itself, restored from an image for instance, has missed what the cache did since. It is
// noticed by the sequence number of its superblock: the copy in the state folder has a higher one. That copy is written
// when a superblock is durable on the SSD, never before, so that a crash at any moment leaves an SSD which is not older
// than the copy; that the copy is older than the SSD says nothing.
//
// What such an SSD has of a device is dropped if nothing of it is dirty; otherwise the start is refused. It is refused as
// well if the SSD that is missing may have dirty data: the disk is then not what the device was. The cache goes on
// with a higher epoch and sequence number than the copy's (cache.Options.After), so that the newer SSD is an older one
// if it comes back.

// checkAge finds out whether the SSD is an older copy, and refuses it if the newer one may have dirty data of a device.
func (in *Instance) checkAge(sb *cache.Superblock) error {
	kept, err := missed.ReadSuper(in.stateDir, in.conf.UUID)
	if err != nil { // this start replaces it
		in.log.Warn("the SSD is not compared with the copy of its superblock", "error", err)
		return nil
	}
	seq := sb.Seq
	if sb.Damaged() {
		seq++
	}
	if kept == nil || kept.Seq <= seq {
		return nil
	}
	in.newer = kept
	var names []string
	for i := range kept.Backings {
		r := &kept.Backings[i]
		name := in.nameOf(r)
		if name == "" || kept.Clean && r.Dirty == 1 || in.decided(name) {
			continue
		}
		m, err := missed.Read(in.stateDir, in.conf.UUID, r.UUID.String())
		if err != nil || m != nil { // checkMissed tells
			continue
		}
		names = append(names, name)
	}
	if len(names) > 0 {
		return report.Refuse("open cache on "+in.ssdInfo.Path, fmt.Sprintf("it is an older copy of the SSD, and the newer "+
			"one may have data of %s that is nowhere else", strings.Join(names, ", ")), fmt.Sprintf("bring that one back; else "+
			"start --drop %s goes on with what the disk has, start --keep %[1]s with what this copy has", names[0]))
	}
	in.log.Warn("the SSD is an older copy of itself", "its start", sb.Epoch, "the last start", kept.Epoch)
	in.opts.Note("the SSD is an older copy of itself")
	return nil
}

// decided reports whether the operator has said what becomes of what the SSD has of a device.
func (in *Instance) decided(name string) bool {
	return slices.Contains(in.opts.Drop, name) || slices.Contains(in.opts.Keep, name)
}

// doubtOld has an older copy of the SSD not believed about a device, see confirmUnused.
func (in *Instance) doubtOld(name string, id cache.UUID) {
	if in.newer != nil && !slices.Contains(in.opts.Keep, name) && !slices.Contains(in.drop, id) &&
		!slices.Contains(in.doubted, id) {
		in.doubted = append(in.doubted, id)
	}
}

// nextEpoch is that of this start.
func (in *Instance) nextEpoch(sb *cache.Superblock) uint64 {
	if in.newer != nil {
		return max(sb.Epoch, in.newer.Epoch) + 1
	}
	return sb.Epoch + 1
}
