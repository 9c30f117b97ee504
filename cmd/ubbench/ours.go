package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"ubcache/internal/control"
)

// add sets a side up: a device whose span is full, and in the cache if it is one.
func (b *bench) add(ctx context.Context, name string) (err error) {
	t := &target{}
	switch name {
	case oursZero:
		err = b.ubcache(ctx, t, "zero", "--no-checksums")
	case oursCopy:
		err = b.ubcache(ctx, t, "copy")
	case kublkZero:
		err = b.kublk(ctx, t, 60, "--auto_zc")
	case kublkCopy:
		err = b.kublk(ctx, t, 61)
	case bcache:
		err = b.bcache(ctx, t)
	case dmCache:
		err = b.dmCache(ctx, t)
	case dmWrite:
		err = b.dmWritecache(ctx, t)
	case kloop:
		err = b.kernelLoop(ctx, t)
	case raw:
		t.dev, err = b.full(ctx)
	default:
		err = fmt.Errorf("no such device")
	}
	b.targets[name] = t
	return err
}

const configFile = "/tmp/ubbench.toml"

// ubcache starts a cache on RAM disks, in writeback mode, and fills it.
func (b *bench) ubcache(ctx context.Context, t *target, name string, format ...string) error {
	ssd, err := b.ssd(ctx)
	if err != nil {
		return err
	}
	slow, err := b.slow(ctx, "slow-"+name)
	if err != nil {
		return err
	}
	if err := b.startCache(ctx, t, name, ssd, slow, format...); err != nil {
		return err
	}
	for try := 1; ; try++ {
		// Written rather than read, so that a piece lies in one place whatever the order of the reads.
		if err := writeAll(ctx, t.dev); err != nil {
			return err
		}
		if _, err := ubcacheCommand(ctx, "flush", "b"+name); err != nil {
			return err
		}
		err := checkFull(ctx, t)
		if !errors.Is(err, errNotFull) || try == fillTries {
			return err
		}
		progress("fill %s again: %v", name, err)
	}
}

// fillTries is how often a cache is filled: a VM without hardware support may spend seconds in the
// allocation of memory, for which the cache takes its SSD to be slow and admits nothing.
const fillTries = 3

var errNotFull = errors.New("not all is in the cache")

// ubcacheCommand runs ubcache, with the benchmark's own configuration.
func ubcacheCommand(ctx context.Context, args ...string) (string, error) {
	return run(ctx, "ubcache", append([]string{"--config", configFile, "--json"}, args...)...)
}

// startCache starts a cache with its own daemon, with a backing device in writeback mode.
func (b *bench) startCache(ctx context.Context, t *target, name, ssd, slow string, format ...string) error {
	if _, err := ubcacheCommand(ctx, append([]string{"format", ssd, "--name", name}, format...)...); err != nil {
		return err
	}
	for key, value := range b.settings {
		if err := configure(ctx, name, key, value); err != nil {
			return err
		}
	}
	if _, err := ubcacheCommand(ctx, "start", name); err != nil {
		return err
	}
	out, err := ubcacheCommand(ctx, "attach", slow, "--cache", name, "--name", "b"+name, "--mode",
		"writeback", "--sequential-cutoff", "0")
	if err != nil {
		return err
	}
	var d control.Device
	if err := json.Unmarshal([]byte(out), &d); err != nil || d.Path == "" {
		return fmt.Errorf("ubcache attach: %w in %s", err, out)
	}
	want := "ring-copy"
	if len(format) > 0 {
		want = "zero-copy"
	}
	if d.CopyMode != want {
		return fmt.Errorf("the device is in mode %q, not %q", d.CopyMode, want)
	}
	t.dev = d.Path
	t.hits = func() (n hitCount, err error) {
		out, err := ubcacheCommand(ctx, "stats", name)
		if err != nil {
			return n, err
		}
		var all []control.Stats
		if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 1 {
			return n, fmt.Errorf("ubcache stats: %w in %s", err, out)
		}
		s := all[0].Devices["b"+name]
		return hitCount{s.HitBlocks, s.MissBlocks}, nil
	}
	return nil
}

// configure changes a key of a cache's configuration.
func configure(ctx context.Context, cache, key, value string) error {
	section := `^\[cache\.` + cache + `\]`
	_, err := run(ctx, "sed", "-i", "-e", "/"+section+"/,/^$/{/^"+key+" =/d}", "-e",
		"/"+section+"/a "+key+` = "`+value+`"`, configFile)
	return err
}

// restart starts a daemon anew, with another value of a key of its cache's configuration.
func restart(ctx context.Context, cache, key, value string) error {
	if _, err := ubcacheCommand(ctx, "stop", cache); err != nil {
		return err
	}
	if err := configure(ctx, cache, key, value); err != nil {
		return err
	}
	_, err := ubcacheCommand(ctx, "start", cache)
	return err
}

// checkFull reads the device once, all of it from the cache.
func checkFull(ctx context.Context, t *target) error {
	before, err := t.hits()
	if err != nil {
		return err
	}
	if err := readAll(ctx, t.dev); err != nil {
		return err
	}
	after, err := t.hits()
	if err != nil {
		return err
	}
	if after.hits == before.hits || after.misses != before.misses {
		return fmt.Errorf("%w: %+v, then %+v", errNotFull, before, after)
	}
	return nil
}
