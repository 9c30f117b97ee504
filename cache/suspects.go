package cache

import (
	"maps"
	"slices"
)

// failure is a first failed read of a slot, in that life of its bucket.
type failure struct {
	want uint64
	life uint32
}

// maxFailed bounds writeback.failed. Tests change it.
var maxFailed = 64 << 10

// suspect is a block that the SSD may have lost. Its slot is pinned until it is judged.
type suspect struct {
	b *Backing
	dirtyKey
}

// sure reports whether the SSD has been there since a read of a block has failed. If that is not known, writeback
// pauses until a probe says so; it finds the block again.
func (wb *writeback) sure(l *Lane, b *Backing, d dirtyKey, err error) bool {
	h := &l.c.ssdHealth
	if ofBucket(err) && !l.c.lost() {
		life := l.c.lifeOf(d.slot)
		f, ok := wb.failed[d]
		if ok = ok && f.life == life; ok && h.good.Load() >= f.want {
			return true
		}
		if !ok {
			if wb.failed == nil {
				wb.failed = map[dirtyKey]failure{}
			}
			if len(wb.failed) >= maxFailed {
				maps.DeleteFunc(wb.failed, func(d dirtyKey, f failure) bool {
					k, st := l.c.index.at(d.slot)
					return k != d.k || st&stDirty == 0 || f.life != l.c.lifeOf(d.slot)
				})
			}
			f = failure{want: h.begun.Load() + 1, life: life}
			if len(wb.failed) < maxFailed { // else it has to wait until others are judged
				wb.failed[d] = f
			}
			storeMax(&h.wanted, f.want)
		}
	}
	wb.pause[b.id], wb.rates[b.id] = l.d.Now()+probePause, 0
	return false
}

// accuse leaves a block, and the pin of its slot, to the next probe.
func (wb *writeback) accuse(l *Lane, b *Backing, d dirtyKey) {
	h := &l.c.ssdHealth
	storeMax(&h.wanted, h.begun.Load()+1)
	wb.suspects, wb.rates[b.id] = append(wb.suspects, suspect{b, d}), 0
}

// convict is for a probe that has succeeded: the first n suspects are bad.
func (wb *writeback) convict(n int) {
	l := wb.bg.l
	n = min(n, len(wb.suspects))
	for _, s := range wb.suspects[:n] {
		delete(wb.failed, s.dirtyKey)
		l.distrust(s.b, s.k, s.slot, false)
		l.c.unpin(s.slot)
	}
	wb.suspects = slices.Delete(wb.suspects, 0, n)
}

// acquit lets go of the suspects, which are tried anew: it may have been the SSD.
func (wb *writeback) acquit() {
	for _, s := range wb.suspects {
		wb.bg.l.c.unpin(s.slot)
	}
	wb.suspects = wb.suspects[:0]
	clear(wb.failed)
}
