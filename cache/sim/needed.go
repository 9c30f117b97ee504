package sim

import (
	"slices"

	"ubcache/cache"
)

// While the SSD is lost a request may fail for lack of it only if it needs what is there only, block by block:
//   - a read, if a block of it was dirty when the SSD was lost, or was pending and is dirty again, and has not been
//     overwritten or discarded since;
//   - a FLUSH, if its device had dirty data, which may lack a record;
//   - a change, if its device had dirty data and the policy says so, or is ordered: the disk is an image that what is queued
//     has to reach first;
//   - everything of such a device, if the policy is to stop.

// neededBlocks are, by device, the blocks that only the lost SSD has.
type neededBlocks []map[int]bool

// noteNeeded is for an SSD that has just been lost.
func (s *Sim) noteNeeded() {
	s.van.needed = make(neededBlocks, len(s.ids))
	for i := range s.ids {
		s.van.needed[i] = map[int]bool{}
		s.noteDirtyBlocks(i, 0, s.models[i].bytes(), false)
	}
	s.noteNeeding()
}

// noteDirtyBlocks notes the dirty blocks of a part of a device, those that are pending or the others.
func (s *Sim) noteDirtyBlocks(i int, off, n int64, pending bool) {
	for b := off / cache.BlockSize; s.van.needed != nil && b*cache.BlockSize < off+n && s.ids[i] != noID; b++ {
		if p, ok := s.c.Locate(s.ids[i], b*cache.BlockSize); ok && p.Dirty && p.Pending == pending {
			s.van.needed[i][int(b)] = true
		}
	}
}

// noteRedirty is for pending blocks that are dirty again while the SSD is lost.
func (s *Sim) noteRedirty(id cache.BackingID, off, n int64) {
	if s.van.health == cache.HealthLost {
		s.noteDirtyBlocks(s.device(id), off, n, true)
		s.noteNeeding()
	}
}

// noteNeeding notes which requests in flight may fail.
func (s *Sim) noteNeeding() {
	for _, r := range s.reqs {
		r.needing = r.needing || s.needs(r)
	}
}

// needs reports whether a request needs what only the lost SSD has.
func (s *Sim) needs(r *request) bool {
	all := s.c.Super().Backings
	at := slices.IndexFunc(all, func(b cache.BackingRecord) bool { return b.ID == r.Backing })
	if at < 0 {
		return false
	}
	t := all[at].Tunables
	switch {
	case t.Loss.Kind == cache.LossStop || r.Op == cache.ReqFlush:
		return true
	case r.Op != cache.ReqRead:
		return t.Ordered || t.Loss.Kind == cache.LossReadOnly || s.unsettled(r.Backing)
	}
	for b := r.first / blockSectors; b <= (r.first+r.n-1)/blockSectors; b++ {
		if s.van.needed[r.dev][b] {
			return true
		}
	}
	return false
}

// unsettled reports whether a device has a queue: one that was ordered until a moment ago may.
func (s *Sim) unsettled(id cache.BackingID) bool {
	return slices.ContainsFunc(s.c.Status().Backings, func(b cache.BackingStatus) bool {
		return b.ID == id && b.UnsettledBytes > 0
	})
}

// replaced is for a request that has ended. If it is a change and was acknowledged, whole blocks of it are no longer needed from the SSD; if not, the
// backing device may have anything, so what is pending is dirty again.
func (s *Sim) replaced(r *request) {
	switch {
	case s.van.health != cache.HealthLost || !r.written:
		if r.read != nil && r.Err == nil && r.bare && !r.needing && s.van.dirty[r.dev] {
			s.res.Spared++
		}
		return
	case r.Err != nil:
		s.noteDirtyBlocks(r.dev, r.Off, r.Len, false)
		s.noteNeeding()
		return
	case !r.bare || s.overlapped(r) || r.Op == cache.ReqDiscard && !s.cfg.Discards: // which does nothing
		return
	}
	end := r.first + r.n
	if end == len(s.models[r.dev].sectors) {
		end += blockSectors - 1 // the device's last block may be a part of one
	}
	for b := (r.first + blockSectors - 1) / blockSectors; (b+1)*blockSectors <= end; b++ {
		delete(s.van.needed[r.dev], b)
	}
}
