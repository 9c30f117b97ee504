package main

import "context"

// The sides of the comparisons.
const (
	oursZero  = "ubcache zero-copy" // without data checksums: requests pass without a copy
	oursCopy  = "ubcache"           // with data checksums, the default
	kublkZero = "kublk auto_zc"
	kublkCopy = "kublk copy"
	bcache    = "bcache"
	dmCache   = "dm-cache"
	dmWrite   = "dm-writecache"
	kloop     = "kernel loop"
	raw       = "RAM disk itself"

	withPriorities    = "rt against idle"
	withoutPriorities = "no priorities"
)

// comparison is a row to be: ours against a peer, with the ratio that is asked for, 0 for none.
type comparison struct {
	ours, peer string
	bar        float64
}

// stage is a workload with its comparisons. Each has a VM of its own: devices that only stand by
// still take time from a machine with two emulated CPUs.
type stage struct {
	workload
	rows []comparison
	// wearIn is how many bytes are written to each side first, so that caches which reuse
	// space are measured reusing it.
	wearIn int64

	// run measures what is not a workload of fio on one side after the other, nil for what is.
	run        func(context.Context, *bench, *stage) ([]row, error)
	contention *contention
	on         string // the device that stages of cost have
	// starts is how many VMs measure it, one after the other, where the difference is as small as that between two starts
	// of the same; 0 is one.
	starts int
}

// hits are the peers that every read workload is compared with, after those that have bars.
func hits(rows ...comparison) []comparison {
	for _, peer := range []string{bcache, dmCache, dmWrite, kloop, raw} {
		rows = append(rows, comparison{oursCopy, peer, 0})
	}
	return rows
}

var writes = workload{
	name: "random 4 KiB writes, QD16", rw: "randwrite", block: "4k", depth: 16, bytes: 256 << 20,
}

// plan is all of it.
var plan = []stage{
	{
		workload: workload{name: "random 4 KiB hits, QD16", rw: "randread", block: "4k", depth: 16},
		rows:     hits(comparison{oursZero, kublkZero, 1.5}, comparison{oursCopy, kublkCopy, 1.2}),
	},
	{
		workload: workload{name: "random 4 KiB hits, QD1", rw: "randread", block: "4k", depth: 1},
		rows:     hits(comparison{oursZero, kublkZero, 0.9}, comparison{oursCopy, kublkCopy, 0.9}),
	},
	{
		workload: workload{
			name: "sequential 1 MiB hits, QD8", rw: "read", block: "1m", depth: 8, mbs: true,
		},
		rows: hits(comparison{oursZero, kublkZero, 1}, comparison{oursCopy, kublkCopy, 1}),
	},
	{
		// None of the peers keeps checksums of data.
		workload: writes, wearIn: ssdMiB << 20,
		rows: []comparison{{oursZero, bcache, 1.5}},
	},
	{
		workload: writes, wearIn: ssdMiB << 20,
		rows: []comparison{{oursCopy, bcache, 0}, {oursCopy, dmWrite, 0}, {oursCopy, dmCache, 0}},
	},
	{
		workload: workload{
			name: "random 4 KiB writes with fsync, QD1", rw: "randwrite", block: "4k", depth: 1,
			fsync: true, bytes: 8 << 20,
		},
		rows: []comparison{
			{oursCopy, bcache, 0},
			{oursZero, bcache, 0},
			{oursCopy, dmWrite, 0},
		},
	},
	{
		workload: workload{name: "attributes, random 4 KiB hits, QD16"}, run: costs, on: oursCopy, starts: 3,
		rows: []comparison{
			{withAttributes, withoutAttributes, 0.95}, {withAttributes, plainDirect, 1},
		},
	},
	{
		workload: workload{name: "attributes, zero copy, random 4 KiB hits, QD16"}, run: costs,
		on: oursZero, starts: 3,
		rows: []comparison{{withAttributes, withoutAttributes, 0.95}, {withAttributes, plainDirect, 0}},
	},
	{
		workload: workload{name: "random 4 KiB hits, QD16", rw: "randread", block: "4k", depth: 16},
		run:      bpfCost, starts: 3, rows: []comparison{{bpfOn, bpfOff, 0.975}},
	},
	contentionStage("hits beside a flood of writes and writeback", 5,
		contention{mode: "writeback", hot: true, jobs: 1, depth: 64, block: "16k"}),
	contentionStage("misses beside a flood of writes past the SSD", 5,
		contention{mode: "writethrough", jobs: 1, depth: 64, block: "16k"}),
	contentionStage("hits beside a flood deeper than the queues, mq-deadline", 5, contention{
		mode: "writeback", hot: true, jobs: 4, depth: 256, block: "16k", scheduler: "mq-deadline",
	}),
	contentionStage("hits beside a flood deeper than the queues, no scheduler", 0,
		contention{mode: "writeback", hot: true, jobs: 4, depth: 256, block: "16k"}),
}

func (s *stage) rowName(c comparison) string { return s.name + ": " + c.ours + " / " + c.peer }

// shownRounds is how often a side is measured that no bar depends on.
const shownRounds = 2
