package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	readBytes = int64(24 << 20) // of the file that is read twice
	ioBytes   = 16 << 10        // of a random read or write
	// dirtyWrites is how many blocks are overwritten at random to have something to write back.
	dirtyWrites = 1000
)

// buffer is memory that O_DIRECT accepts.
func buffer(size int) []byte {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return b
}

func fill(p []byte, seed uint64) {
	rnd := rand.NewPCG(seed, 4)
	for ; len(p) >= 8; p = p[8:] {
		binary.LittleEndian.PutUint64(p, rnd.Uint64())
	}
}

// writeFile writes a file past the page cache.
func writeFile(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|unix.O_DIRECT, 0o644)
	if err != nil {
		return err
	}
	p := buffer(1 << 20)
	for off := int64(0); off < size; off += int64(len(p)) {
		fill(p, uint64(off))
		if _, err := f.WriteAt(p, off); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

// pass does something with every block of the file in random order, past the page cache, and
// tells how many a second that were.
func (d *demo) pass(name string, flags, blocks int, do func(f *os.File, off int64) error) (float64, error) {
	f, err := os.OpenFile(name, flags|unix.O_DIRECT, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	order := rand.New(rand.NewPCG(1, 1)).Perm(int(readBytes / ioBytes))
	start := time.Now()
	for _, i := range order[:blocks] {
		if err := d.ctx.Err(); err != nil {
			return 0, err
		}
		if err := do(f, int64(i)*ioBytes); err != nil {
			return 0, err
		}
	}
	return float64(blocks) / time.Since(start).Seconds(), nil
}

// readTwice reads all blocks of the file in random order, twice.
func (d *demo) readTwice() error {
	name, p := d.mount+"/data", buffer(ioBytes)
	var rates [2]float64
	for i, what := range []string{"cold", "warm"} {
		before, err := d.status()
		if err != nil {
			return err
		}
		rates[i], err = d.pass(name, os.O_RDONLY, int(readBytes/ioBytes), func(f *os.File, off int64) error {
			_, err := f.ReadAt(p, off)
			return err
		})
		if err != nil {
			return err
		}
		after, err := d.status()
		if err != nil {
			return err
		}
		hits, misses := after.hits-before.hits, after.misses-before.misses
		ratio := 100 * float64(hits) / float64(max(hits+misses, 1))
		say("%s: %6.0f random reads of 16 KiB a second, %5.1f MB/s, %5.1f %% hits", what, rates[i],
			rates[i]*ioBytes/1e6, ratio)
		if i == 1 && ratio < 95 {
			return fmt.Errorf("only %.1f %% of the second pass came from the cache", ratio)
		}
	}
	d.coldIOPS = rates[0]
	say("warm is %.1f times as fast as cold", rates[1]/rates[0])
	if d.throttled && rates[1] < 2*rates[0] {
		return errors.New("the cache does not make it faster")
	}
	return nil
}

// writeBack makes blocks dirty at random and shows how they get to the slow disk.
func (d *demo) writeBack() error {
	p, n := buffer(ioBytes), uint64(0)
	rate, err := d.pass(d.mount+"/data", os.O_WRONLY, dirtyWrites, func(f *os.File, off int64) error {
		n++
		fill(p, n)
		_, err := f.WriteAt(p, off)
		return err
	})
	if err != nil {
		return err
	}
	s, err := d.status()
	if err != nil {
		return err
	}
	say("%d random writes of 16 KiB: %.0f a second (the slow disk reads %.0f)", dirtyWrites, rate, d.coldIOPS)
	if s.onSSD == 0 || s.dirty == 0 {
		return errors.New("nothing is dirty: the writes did not go to the SSD")
	}
	return d.watchFlush()
}

// watchFlush writes everything back, with a line for every change that one can see.
func (d *demo) watchFlush() error {
	start := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := d.ubcache("flush", "demo")
		done <- err
	}()
	say("    time      dirty   written back")
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for over := false; ; {
		s, err := d.status()
		if err != nil {
			return err
		}
		say("%6.1f s %10s %14s", time.Since(start).Seconds(), mb(s.dirty), mb(s.writtenBack*4096))
		if over {
			if s.dirty != 0 {
				return fmt.Errorf("%s are dirty after ubcache flush", mb(s.dirty))
			}
			return nil
		}
		select {
		case err := <-done:
			if err != nil {
				return err
			}
			over = true
		case <-tick.C:
		}
	}
}
