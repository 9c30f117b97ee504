package cache

import (
	"time"

	"ubcache/policy"
)

// writeback copies dirty blocks to their backing devices, in the order of their addresses, many
// neighbours in one write. It scans the buckets that have dirty slots for the next keys in order,
// and works through them in batches of one region. A block stays dirty on record until a flush
// of the backing device has covered it: written, it becomes pending.
//
// Each device has its own list of what is to be done, and may have a batch under way whatever the others have: one that is
// slow, is written to at a low rate or does not answer is no reason for others to wait.
type writeback struct {
	bg      *background
	keys    [MaxBackings + 1][]dirtyKey // to do, in order
	cursor  [MaxBackings + 1]key        // where the next scan begins
	dry     [MaxBackings + 1]bool       // a scan before rescan has found all that there is
	rescan  int64                       // a scan may take long if much is dirty
	scans   int64                       // so far
	turn    BackingID                   // whose batch was begun last
	batches []*batch
	flying  int
	filling bool
	working bool                   // some rate is not 0
	tokens  [MaxBackings + 1]int64 // blocks that may be written now
	rates   [MaxBackings + 1]int64 // blocks per second
	only    [MaxBackings + 1]bool  // write back just what is to leave the cache
	most    int                    // blocks of a batch
	last    int64
	pause   [MaxBackings + 1]int64 // after an error, until then
	// failed are blocks that the SSD has failed to read once, by itself, and the probes that say whether it is worth while to
	// read them again.
	failed map[dirtyKey]failure
	// suspects have failed again after that. They are bad if one more probe succeeds: the SSD may have gone since.
	suspects []suspect
	// flyingOf counts the batches under way of each device, and parallel says how many there may be.
	flyingOf, parallel [MaxBackings + 1]int
}

const (
	maxBatches = 4
	// batchBesideRT is how many blocks a batch has at most beside requests of class RT: they wait for
	// what the device has begun.
	batchBesideRT = 32
	scanKeys      = 32 << 10
	// scanRest is how many times as long as a scan took devices that have little to write back wait for the next one.
	scanRest   = 4
	errorPause = int64(time.Second)
)

// tick sets the rates and starts batches.
func (wb *writeback) tick(now int64) {
	c := wb.bg.l.c
	elapsed := now - wb.last
	wb.last = now
	if c.closing.Load() { // what is dirty stays so; the backing device is not changed any more
		wb.leaveAll()
		wb.working = false
		return
	}
	work := false
	wb.most = regionBlocks
	if wb.bg.l.contention(now).RT {
		wb.most = batchBesideRT
	}
	if now >= wb.rescan {
		wb.dry = [MaxBackings + 1]bool{}
	}
	for id, b := range c.backings.Load() {
		if b == nil {
			wb.rates[id] = 0
			continue
		}
		rate := wb.rate(b, now)
		wb.rates[b.id] = rate
		if rate == 0 {
			wb.tokens[b.id] = 0
			continue
		}
		work = true
		wb.tokens[b.id] = min(wb.tokens[b.id]+earned(rate, elapsed), max(rate/4, regionBlocks))
		if wb.parallel[b.id] = maxBatches; rate < policy.Full {
			wb.parallel[b.id] = 1
		}
	}
	wb.working = work
	if !work {
		wb.leaveAll()
		return
	}
	wb.fill(now)
}

// earned is how many blocks may be written back for that much time, in nanoseconds.
func earned(rate, elapsed int64) int64 {
	return int64(float64(rate)*float64(min(elapsed, 1e9))/1e9) + 1
}

// fill begins batches. One that finds nothing left to do ends in here.
func (wb *writeback) fill(now int64) {
	if wb.filling || wb.bg.l.c.lost() {
		return
	}
	wb.filling = true
	for wb.startBatch(now) {
	}
	wb.filling = false
}

// rate asks the policy; what no longer belongs in the cache has to go at once.
func (wb *writeback) rate(b *Backing, now int64) int64 {
	o := &b.order
	dirty := b.loose()
	if r := wb.bg.orders[b.id]; r != nil && r.busy {
		return 0 // two versions of a block must not be on their way at once
	}
	if dirty <= 0 {
		b.dirtySince.Store(0)
		return 0
	}
	wb.only[b.id] = false
	if now < wb.pause[b.id] || b.Presence() != Present || len(wb.suspects) > 0 || b.forgetting.Load() {
		return 0
	}
	v := policy.WritebackView{
		Dirty: dirty, Target: b.dirtyTarget.Load(), Max: b.dirtyMax.Load(), All: wb.bg.l.c.dirty.Load(),
		Delay: time.Duration(b.delay.Load()), Idle: time.Duration(now - b.lastIO.Load()),
		Drain: b.draining.Load() || wb.bg.pressed || !modeTable[b.Mode()].back ||
			o.on.Load() && !o.based.Load(),
		RT: wb.bg.l.contention(now).RT,
	}
	b.dirtySince.CompareAndSwap(0, now) // what a write did not make dirty
	v.Age = time.Duration(now - b.dirtySince.Load())
	rate := policy.WritebackRate(v)
	if rate == 0 && b.leaving.Load() > 0 {
		v.Drain, wb.only[b.id] = true, true
		rate = policy.WritebackRate(v)
	}
	return rate
}

// wants reports whether a block of the state is to be written back now.
func (wb *writeback) wants(id BackingID, st state) bool {
	return st&(stDirty|stPending|stBad|stQueued) == stDirty && wb.rates[id] > 0 &&
		(!wb.only[id] || st&stLeave != 0)
}

// startBatch takes the next keys of one region, of the devices in turn; false if there are none to write now.
func (wb *writeback) startBatch(now int64) bool {
	if wb.bg.l.c.closing.Load() {
		return false
	}
	for range 2 {
		for i := range BackingID(MaxBackings) {
			id := (wb.turn+i)%MaxBackings + 1
			if r := wb.bg.orders[id]; r != nil && r.busy {
				wb.rates[id] = 0 // it has begun since the last tick
			}
			if wb.rates[id] == 0 {
				wb.leave(id)
			}
			keys := wb.keys[id]
			if len(keys) == 0 || wb.tokens[id] <= 0 || !wb.mayFly(id) {
				continue
			}
			n := 1
			for n < min(len(keys), wb.most) && keys[n].k>>regionShift == keys[0].k>>regionShift {
				n++
			}
			wb.turn = id
			wb.tokens[id] -= int64(n)
			wb.keys[id] = keys[n:]
			return wb.newBatch(keys[:n])
		}
		if !wb.scan() {
			return false
		}
	}
	return false
}

// leave gives up the keys of a device, with which the next scan begins: not with those that have just failed.
func (wb *writeback) leave(id BackingID) {
	if len(wb.keys[id]) > 0 {
		wb.cursor[id], wb.keys[id] = wb.keys[id][0].k, nil
	}
}

func (wb *writeback) leaveAll() {
	for id := range wb.keys {
		wb.leave(BackingID(id))
	}
}

// mayFly reports whether a device may have one more batch under way.
func (wb *writeback) mayFly(id BackingID) bool {
	n := wb.flyingOf[id]
	return n == 0 || n < wb.parallel[id] && wb.flying < maxBatches
}
