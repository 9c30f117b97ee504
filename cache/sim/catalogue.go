package sim

import "fmt"

// Catalogue has the scenarios of the sweeps: each is about one order of steps that a cache can get
// wrong.
var Catalogue = []Scenario{
	{Name: "overwrite", Script: `write 0 8; flush; write 0 8; write 16 8; flush; write 0 16`},
	{Name: "partial", Script: `write 1 3; flush; write 2 4; read 0 8; write! 5 1; drain on; drained; drain off
		write 6 1; flush; write 0 1`},
	{Name: "bypass over clean", Script: `write 0 32; flush; drain on; drained; drain off; read 0 32
		mode writearound; write 8 8; read 0 32; flush; write 0 4; flush; read 0 8`},
	{Name: "bypass over dirty", Script: `write 0 32; flush; mode none; write 8 8; read 0 32; write 3 2; flush; read 0 16`},
	{Name: "discard", Script: `write 0 32; flush; discard 0 16; read 0 32; flush; write 4 8; discard 0 3; flush; read 0 16`},
	{Name: "discard of clean", Script: `read 0 32; write 0 16; drain on; drained; drain off; discard 8 16; read 0 32; flush; read 0 32`},
	{
		Name: "discard without support", Script: `write 0 32; discard 0 16; read 0 32; flush; read 0 32`,
		Config: func(c *Config) { c.Discards = false },
	},
	{Name: "write zeroes", Script: `write 0 32; flush; zero 4 16; read 0 32; flush; zero 0 8; read 0 32`},
	{
		Name: "write zeroes by writing", Script: `write 0 32; zero 4 16; flush; read 0 32`,
		Config: func(c *Config) { c.Zeroes = false },
	},
	{Name: "writethrough", Script: `mode writethrough; write 0 16; write 4 8; read 0 32; flush; write 0 8; pass 1500; write 0 8; read 0 16`},
	{Name: "writethrough with FUA", Script: `mode writethrough; write! 0 16; write! 8 8; write! 3 2; read 0 16`},
	{Name: "writethrough, unflushed", Script: `mode writethrough; write 0 64; read 0 64; write 16 16; read 0 64`},
	{Name: "fill", Script: `write 0 16; drain on; drained; evict 0 16; drain off; read 0 64; read 0 64; mode writearound; write 8 16; read 0 64`},
	{Name: "fill racing a write", Script: `begin read 0 64; begin write 8 8; wait; read 0 64
		mode writearound; begin read 64 64; begin write 72 8; begin read 64 64; wait; read 64 64
		mode writethrough; begin read 128 32; begin write 136 8; wait; read 128 32; flush`},
	{Name: "fill after an unflushed write", Script: `mode writearound; write 0 32; read 0 32; read 0 32; pass 1500; read 0 32`},
	{Name: "fill racing writeback", Script: `write 0 128; drain on; begin read 128 64; ops 3; begin write 16 16; drained; drain off; read 0 192`},
	{Name: "FUA", Script: `write! 0 8; write 8 8; write! 0 4; write! 4 8`},
	{Name: "flushes of many", Script: `begin write 0 8; begin flush; begin write 8 8; begin flush; begin write! 0 8; begin flush; wait`},
	{Name: "writes of one block", Script: `begin write 0 8; begin write 0 8; begin write 2 3; begin write 0 8; wait; flush; read 0 8`},
	{Name: "mode switch", Script: `mode writethrough; write 0 16; mode writeback; write 8 16; mode none; write 0 8; read 0 32
		mode writeonly; write 4 8; read 0 32; mode writearound; write 0 4; flush; pass 1500; read 0 32`},
	{Name: "writeback", Script: `write 0 64; write 100 3; drain on; drained; drain off; pass 1500; flush; read 0 128`},
	{Name: "rewrite under writeback", Script: `write 0 64; drain on; pass 101; ops 1; begin write 0 32; ops 3; begin write 16 64; drained; wait; drain off; flush; read 0 128`},
	{Name: "writethrough under writeback", Script: `write 0 64; mode writethrough; begin write 8 16; drain on; ops 4; begin write 0 64; drained; wait; drain off; flush; read 0 64`},
	{Name: "writeback, then flush of the disk", Script: `write 0 64; flush; drain on; drained; drain off; write 0 16; mode writearound; write 32 8; flush; pass 1500; read 0 64`},
	{Name: "pin", Script: `write 0 32; pin 0 32; flush; write 8 8; mode writethrough; write 0 8; write 18 2; flush; evict 0 32; read 0 32`},
	{Name: "evict", Script: `write 0 64; evict 0 64; pass 3000; read 0 64; evict 0 32; write 0 16; evict 0 16; write 4 4; pass 3000; flush`},
	{Name: "buckets in turn", Script: `12 times {write 0 512; write 512 512; write 1024 512; drain on; drained; drain off}
		read 0 512; flush`, Config: func(c *Config) { c.DeviceBytes = 768 << 10 }},
	{Name: "eviction", Script: `begin read 0 512; begin read 512 512; begin read 2048 512; wait; read 4096 512
		pass 200; read 1024 512; read 5120 512; pass 200; read 3072 512; read 3584 512; pass 200
		write 8 8; read 0 512; flush`, Config: func(c *Config) { c.DeviceBytes = 3 << 20 }},
	{Name: "bucket with a bad sector", Alone: 4, Script: `write 0 128; drain on; drained; drain off; hurt 8; read 8 8
		10 times {write 960 480; write 480 480; write 0 480; drain on; drained; drain off}
		read 0 512; flush`, Config: func(c *Config) { c.DeviceBytes = 768 << 10 }},
	{Name: "eviction with discard", Script: `8 times {write 0 512; write 512 512; drain on; drained; drain off}
		flush`, Config: func(c *Config) { c.Trim = true; c.DeviceBytes = 512 << 10 }},
	{Name: "slots used again", Alone: 4, Script: `write 0 128; hold on; drain on; pass 500; drain off; again 0 128
		drain on; pass 500; let; flush; crash 0; hold off; evict 0 128; pass 3000; read 0 128`},
	{Name: "checkpoint", Script: `36 times {write 0 8; flush}
		pass 200; write 8 8; flush; read 0 16`},
	{Name: "checkpoint beside writes", Script: `33 times {write! 0 8}
		12 times {begin write 8 8; begin write 16 24; begin flush; ops 2}
		wait; discard 0 8; flush; read 0 64`},
	{
		Name: "two devices", Script: `write 0 16; dev 1; write 0 16; mode writethrough; write 8 8; flush; dev 0; discard 0 8; flush; dev 1; read 0 16`,
		Config: func(c *Config) { c.Devices = 2 },
	},
	{Name: "restart", Script: `write 0 32; drain on; drained; drain off; write 8 8; restart; read 0 32; write 0 8; restart; write 0 4; read 0 32`},
	{Name: "bypass while loading", Script: `write 0 128; drain on; drained; drain off; pass 1500; resume
		mode none; write 8 8; write 19 3; discard 32 16; flush; read 0 64; loaded; read 0 128`},
	{Name: "bypass of a copy while loading", Script: `write 0 128; drain on; drained; drain off; pass 1500; resume
		mode writethrough; write 8 8; mode writearound; begin write 8 8; read 0 16; wait; loaded; read 0 32; restart; read 0 128`},
	{Name: "overwrite while loading", Script: `write 0 128; drain on; drained; drain off; pass 1500; resume
		write 8 16; drain on; drained; drain off; pass 1500; evict 8 16; loaded; read 0 64; flush; read 0 128`},
	{Name: "writeback while loading", Script: `write 0 128; drain on; drained; drain off; pass 1500; resume
		write 0 32; drain on; ops 6; write 2 8; drained; drain off; read 0 64; loaded; read 0 128`},
	{Name: "journal while loading", Script: `write 512 256; write 1024 256; write 1536 256; write 0 128; drain on; drained; drain off; pass 1500; resume; slow on; mode none; write 8 8; flush; mode writeback
		40 times {write! 1800 8}
		pass 400; write! 1808 8; read 0 16; loaded; read 0 128; restart; read 0 128`},
	{Name: "power cut after a long load", Alone: 4, Script: `write 512 256; write 1024 256; write 1536 256; write 0 128; drain on; drained; drain off; pass 1500; resume; slow on; mode none; write 8 8; discard 32 16; flush; mode writeback
		40 times {write! 1800 8}
		pass 400; write! 1808 8; read 0 16; crash 0; read 0 128; loaded; read 0 128`},
	{Name: "dirty and loading", Script: `write 0 128; drain on; drained; drain off; write 8 32; resume; read 0 64; write 4 8; mode none; write 24 4
		resume; read 0 64; loaded; read 0 128`},
	{Name: "kill", Script: `write 0 32; begin write 8 8; begin write 16 32; ops 1; crash 3; wait; write 0 8; crash 3; read 0 64`},
	{Name: "power cuts", Script: `write 0 32; flush; write 0 16; crash 0; read 0 32; write 4 8; crash 0; read 0 32; flush; crash 0; read 0 32`},
	{Name: "writethrough and kill", Script: `mode writethrough; write 0 32; begin write 8 8; ops 1; crash 3; wait; read 0 32; crash 0; read 0 32`},
	{Name: "torn commits", Alone: 8, Script: `write 0 8; flush; drain on; drained; drain off
		24 times {write 1440 480; write 960 480; write 480 480; write 0 480; begin flush; ops 2; crash 0; write 0 8; flush; crash 0; read 0 64}`},
	{Name: "torn checkpoints", Alone: 8, Script: tornCheckpoints(), Config: func(c *Config) { c.BigBuckets = true }},
	{Name: "lost while it is written back", Script: `write 0 64; flush; hold writes; drain on; pass 500; hurt 9; read 8 8; pass 200; read 8 8
		pass 200; read 8 8; hold off; drained; drain off; pass 1500; read 0 64; flush; write 8 8; read 0 64`},
	{
		Name: "ordered", Script: `write 0 16; flush; write 8 16; write! 32 8; write 0 8; flush; pass 1500; write 4 2; flush; write 40 16
		pass 300; write 0 64; flush; write 8 8; begin write 16 8; begin flush; begin write 8 8; wait; pass 1500; read 0 64; flush; write 20 30`,
		Config: ordered,
	},
	{
		Name: "ordered, past the cache", Script: `write 0 32; flush; write 0 8; discard 16 8; flush; mode writethrough; write 0 12; mode none; write 24 8; read 0 64
		mode writeback; write 24 4; flush; pass 300; discard 0 40; write 8 8; zero 10 2; mode writearound; begin write 8 8; begin discard 16 24; begin flush; wait
		mode writeback; write 0 64; flush; pass 1500; write 3 9; discard 16 16; flush; restart; write 0 8; flush; pass 1200; write 0 4`,
		Config: ordered,
	},
	{Name: "sequential", Script: `begin write 0 512; begin write 512 512; begin write 1024 512; wait; read 0 2048; write 512 8; flush; write 0 1024`},
	{Name: "detach", Script: `write 0 64; flush; detach; write 8 8; drained; read 0 64; flush; write 0 16; attach; write 0 8; read 0 64; flush`},
	{
		Name: "small device", Script: `write 0 9; flush; write 8 2; read 0 10; discard 0 10; write 9 1; flush; read 0 10`,
		Config: func(c *Config) { c.DeviceBytes = 10 * sectorSize },
	},
}

// ordered makes the devices ordered; they are small, as their images are looked at again and again.
func ordered(c *Config) { c.Ordered, c.DeviceBytes = true, 128<<10 }

// tornCheckpoints cuts the power all along a checkpoint, after one that was complete.
func tornCheckpoints() string {
	all := "write 0 240; flush\n"
	for ops := 0; ops < 40; ops += 3 {
		all += fmt.Sprintf(`summaries; wait; pass 300
			summaries; ops %d; crash 0; wait; read 0 240
		`, ops)
	}
	return all
}
