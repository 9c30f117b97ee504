package sim

import (
	"math/rand/v2"
	"time"
)

// Config is what a seed decides before the history begins.
type Config struct {
	Seed        uint64
	Lanes       int
	Depth       int
	Steps       int
	Checksums   bool
	ZeroCopy    bool // requests without visible data
	Targets     bool // reads come with the client's memory, which it meddles with; see target.go
	Devices     int
	DeviceBytes int64
	LBS         int
	BigBuckets  bool // whose summaries are more than a sector, so that they can be torn
	Discards    bool
	Zeroes      bool
	Crashes     int // per 10,000 steps
	Trim        bool
	ModeChanges bool
	Flushes     int  // per 100 requests
	Hot         int  // per cent of requests that go to a small part of the device
	Large       bool // many requests fill the pending ring before it is committed
	Attributes  bool // requests carry attributes
	Ordered     bool // devices are ordered; see ordered.go
	Pinning     bool // many of them pin
	Through     bool // nothing is written back: the modes are writethrough and writearound
	Faults      faultSet
	FaultRate   int // per 10,000 steps
	Vanish      int // how often the SSD vanishes or comes back, per 10,000 steps
	LossHold    time.Duration
	StallLimit  time.Duration // cache.Options
	LossLimit   time.Duration
	Gone        int // how often a backing device goes away or comes back, per 10,000 steps
	Restarts    int // orderly stops and starts, per 10,000 steps; requests come while the index is loaded
	SlowLoad    bool
	Scrubs      bool // now and then what is cached is verified
	Detaches    int  // of devices, which are attached again, per 10,000 steps
	StallReads  int  // how often reads are looked at while the SSD stalls, per 10,000 steps; see stall.go
	Swaps       bool // a driver that can give a read other memory
	LoadRegions int  // how much is remembered of changes meanwhile
	// LyingFlush makes every flush of the SSD a lie, for tests of the checker.
	LyingFlush bool
}

// NewConfig draws a configuration.
func NewConfig(seed uint64) Config {
	rng := rand.New(rand.NewPCG(seed, 1))
	c := Config{
		Seed: seed, Lanes: 1 + rng.IntN(3), Depth: 1 + rng.IntN(12), Steps: 1500,
		Checksums: rng.IntN(3) > 0, Devices: 1 + rng.IntN(2),
		DeviceBytes: int64(1+rng.IntN(3))<<20 + int64(rng.IntN(8))*4096,
		LBS:         512, Discards: rng.IntN(2) == 0, Zeroes: rng.IntN(2) == 0,
		Crashes: 5 + rng.IntN(30), Trim: rng.IntN(4) == 0, ModeChanges: rng.IntN(3) == 0,
		Flushes: rng.IntN(20), Hot: rng.IntN(100),
	}
	if !c.Checksums {
		c.ZeroCopy = rng.IntN(2) == 0
	}
	c.Large = rng.IntN(5) == 0
	c.Attributes = seed%2 == 1
	if rng.IntN(3) == 0 {
		c.LBS = 4096
	} else {
		c.DeviceBytes += int64(rng.IntN(8)) * 512
	}
	if rng.IntN(8) == 0 {
		c.Through, c.ModeChanges, c.Attributes = true, false, false
	}
	c.BigBuckets = rng.IntN(20) == 0
	if c.Attributes && rng.IntN(4) == 0 {
		c.pin()
	}
	if seed%3 != 0 { // a third of the histories has crashes only
		c.FaultRate = 20 + rng.IntN(400)
		c.Faults = faultSet(rng.Uint32()) & (1<<numFaults - 1)
		if rng.IntN(2) == 0 {
			c.Faults |= faultSet(rng.Uint32()) & (1<<numFaults - 1)
		}
		if !c.Checksums {
			c.Faults &^= silent
		}
	}
	switch rng.IntN(10) {
	case 0, 1:
		c.Gone = 20 + rng.IntN(100)
		c.Faults &^= 1 << FaultBackingDead // which is what that is
	case 2:
		c.vanish(rng)
		c.Crashes = max(1, c.Crashes)
	}
	loads := rand.New(rand.NewPCG(seed, 5))
	if loads.IntN(2) == 0 {
		c.Restarts = 10 + loads.IntN(40)
	}
	c.LoadRegions, c.SlowLoad = 1+loads.IntN(6), loads.IntN(2) == 0
	c.Targets = !c.ZeroCopy && loads.IntN(3) == 0
	c.Scrubs = loads.IntN(3) == 0
	if more := rand.New(rand.NewPCG(seed, 9)); more.IntN(4) == 0 {
		c.Detaches = 20 + more.IntN(80)
	}
	return c
}

// fail makes some of the kinds of faults happen.
func (c *Config) fail(rng *rand.Rand, kinds faultSet) {
	c.Faults, c.FaultRate = kinds&faultSet(rng.Uint32()), 20+rng.IntN(200)
	if !c.Checksums {
		c.Faults &^= silent
	}
}

// pin makes many requests pin, of so much more than the SSD holds that pinned blocks have to be moved.
func (c *Config) pin() {
	if !c.Pinning {
		c.Attributes, c.Pinning, c.Through = true, true, false
		c.Devices, c.DeviceBytes = 2, c.DeviceBytes+2<<20
	}
}

// Result counts what happened in a history, or in many.
type Result struct {
	Histories, Crashed           int // of many: how many, and how many of them with crashes
	Took                         time.Duration
	Requests, Crashes            int
	Cuts                         [numCrashes]int
	CrashedStarts, RefusedStarts int
	Faults                       [numFaults]int // that had an effect
	Failed                       int            // requests that failed for them, as they may
	Lost                         int            // dirty blocks at the end
	Hits, Evicted, Checkpoints   int64
	Placed, Meddled              int // reads into clients' memory, and what clients did to it meanwhile
	WrittenBack, Moved, Healed   int64
	Pins, Evictions              int   // that were handled
	Refused, Mismatched, Late    int   // requests that failed for their attributes
	Images, Behind, Batches      int64 // of ordered devices: looked at, older than what was acknowledged
	Broken                       int   // orders that were given up
	// How often the SSD vanished, came back, and came back having missed nothing; requests that failed for
	// lack of it, and for what it had lost.
	Vanished, Returned, ReturnedWarm int
	FailedLost, FailedBad            int
	// How often it stalled, and was lost for that; how often it was taken back in place, and how often the
	// machine lost its power while it was away.
	Stalls, InPlace, CutsAway int
	GivenUp, Over             int // that faults made the engine do; histories that are the operator's
	// How often a backing device went away, was given back by the guard, and had lost something by then that a
	// client was told; FLUSHes that said so.
	Gone, GivenBack, Forgotten, Reported int
	Restarts, Loaded                     int   // orderly restarts; those that were loaded to the end
	LateDropped                          int64 // entries of them that had become obsolete
	Salvaged, SalvagedBlocks             int   // crashes after which dirty data was salvaged, and how much
	Scrubs                               int   // that have ended
	Detached, Forced                     int   // devices; of them by force
	Scrubbed                             int64 // blocks that they have looked at
	// Reads without the SSD that did not need what it had of their device.
	Spared int
	// Reads that went round an SSD that did not answer, blocks of them that were not admitted, and memory that was replaced.
	Around, Unadmitted, Swapped int
	// Buckets that the SSD has failed, and those of them that were empty then, so that they could have been used.
	Retired, Emptied int
	// Clean blocks that had to be cached after a power cut, a kill, and when the SSD was back; see warm.go.
	WarmCut, WarmKilled, WarmBack int64
}
