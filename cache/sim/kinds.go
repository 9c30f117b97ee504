package sim

import "fmt"

// kind is a kind of histories in which much of one thing happens. Mutants that show there are hunted in as many as make test
// plays with the engine as it is.
type kind struct {
	name   string // as in cache.Mutant.In
	draw   func(seed uint64) Config
	played uint64
}

// The first ones have tests of their own, of which the Makefile says how much is played: SIM_VANISHING and SIM_ORDERED.
var kinds = [...]kind{
	{"vanish", NewVanishConfig, 3000},
	{"ordered", NewOrderedConfig, 400},
	{"gone", NewGoneConfig, 350},
	{"pins", NewPinsConfig, 550},
	{"both fail", NewBothFailConfig, 950},
}

const ownKinds = 2 // those with tests of their own

// NewGoneConfig draws a configuration of a history in which backing devices go away again and again.
func NewGoneConfig(seed uint64) Config {
	c := NewConfig(seed)
	c.Vanish, c.Gone, c.Through, c.Faults, c.FaultRate = 0, 200, seed%2 == 0, 0, 0
	return c
}

// NewPinsConfig draws a configuration of a history in which much is pinned.
func NewPinsConfig(seed uint64) Config {
	c := NewConfig(seed)
	c.Vanish, c.Gone, c.Ordered = 0, 0, false
	c.pin()
	return c
}

// NewBothFailConfig draws a configuration of a history in which flushes of the SSD fail, and changes of backing devices.
func NewBothFailConfig(seed uint64) Config {
	c := NewConfig(seed)
	c.Vanish, c.Gone, c.Ordered, c.Through = 0, 0, false, true
	c.ModeChanges, c.Attributes, c.Pinning = false, false, false
	c.Faults, c.FaultRate = 1<<FaultSSDFlush|1<<FaultBackingWrite, 600
	return c
}

// drawKinds draws the histories of several kinds: as many as are played of each, or one in every so many.
func drawKinds(all []kind, every uint64) (draw func(i uint64) Config, n uint64) {
	for _, k := range all {
		n += k.played / every
	}
	return func(i uint64) Config {
		for _, k := range all {
			if m := k.played / every; i > m {
				i -= m
				continue
			}
			return k.draw(i)
		}
		panic(fmt.Sprintf("there is no history %d", i))
	}, n
}
