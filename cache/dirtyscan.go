package cache

import (
	"cmp"
	"slices"
)

type dirtyKey struct {
	k    key
	slot Slot
}

// lacks reports whether a scan is to look for keys of a device. What a batch under way has would be found again.
func (wb *writeback) lacks(id BackingID) bool {
	return wb.rates[id] > 0 && wb.tokens[id] > 0 && len(wb.keys[id]) == 0 && wb.flyingOf[id] == 0 && !wb.dry[id]
}

// sortKeys puts keys in order, each once: a block that is overwritten while the buckets are scanned
// may be found in its old slot and in its new one. Which of them is right a batch finds out.
func sortKeys(keys []dirtyKey) []dirtyKey {
	slices.SortFunc(keys, func(a, b dirtyKey) int { return cmp.Compare(a.k, b.k) })
	return slices.CompactFunc(keys, func(a, b dirtyKey) bool { return a.k == b.k })
}

// scan finds the next dirty keys, of each device that lacks some from its cursor on, going round at the end. It reports
// whether there are any.
func (wb *writeback) scan() (found bool) {
	c := wb.bg.l.c
	var from [MaxBackings + 1]key
	var look [MaxBackings + 1]bool
	devices := 0
	for id := range look {
		if look[id] = wb.lacks(BackingID(id)); look[id] {
			devices++
		}
		from[id] = wb.cursor[id]
	}
	if devices == 0 {
		return false
	}
	most := max(scanKeys/devices, regionBlocks)
	wb.scans++
	begun := wb.bg.l.d.Clock()
	defer func() {
		now := wb.bg.l.d.Clock()
		wb.rescan = now + max(int64(tickEvery), scanRest*(now-begun))
	}()
	for range 2 {
		for b := range c.buckets {
			if c.buckets[b].dirty.Load() == 0 {
				continue
			}
			c.slotsOf(BucketID(b), func(s Slot) {
				k, st := c.index.at(s)
				id := k.backing()
				if k == 0 || !look[id] || k < from[id] || !wb.wants(id, st) {
					return
				}
				if wb.keys[id] = append(wb.keys[id], dirtyKey{k, s}); len(wb.keys[id]) >= 2*most {
					keys := sortKeys(wb.keys[id])
					wb.keys[id] = keys[:min(len(keys), most)]
				}
			})
		}
		again := false
		for id := range look {
			if !look[id] {
				continue
			}
			keys := sortKeys(wb.keys[id])
			keys = keys[:min(len(keys), most)]
			if wb.keys[id] = keys; len(keys) > 0 {
				wb.cursor[id] = keys[len(keys)-1].k + 1
				if len(keys) < most { // these are all
					wb.cursor[id], wb.dry[id] = 0, from[id] == 0
				}
				look[id], found = false, true
				continue
			}
			again, from[id] = true, 0
		}
		if !again {
			return found
		}
	}
	for id, yes := range look {
		if yes {
			wb.cursor[id], wb.dry[id] = 0, true
		}
	}
	return found
}
