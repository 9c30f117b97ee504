package cache

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// countedReads calls f with the number of each read.
type countedReads struct {
	memStorage
	n int
	f func(n int)
}

func (s *countedReads) ReadAt(p []byte, off int64) (int, error) {
	s.n++
	s.f(s.n)
	return s.memStorage.ReadAt(p, off)
}

// stoppedCache is a cache that a daemon has left: with blocks, and some chunks of every kind of metadata.
func stoppedCache(t *testing.T) memStorage {
	t.Helper()
	dev := make(memStorage, 256<<20)
	if _, err := Format(dev, FormatOptions{BucketBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, dev, 64<<20)
	for i := range int64(32) {
		h.write(i*64*BlockSize, fill(byte(i+1), 32))
	}
	h.flush()
	h.c.Abandon()
	return dev
}

// Whoever looks at a cache and is interrupted while the metadata is read ends at once, whatever is being
// read, and gives the memory back.
func TestInterruptedLoading(t *testing.T) {
	dev := stoppedCache(t)
	lost := memStorage(slices.Clone(dev))
	clear(lost[superOffA : superOffA+superBytes])
	clear(lost[superOffB : superOffB+superBytes])
	for _, tt := range []struct {
		name string
		dev  memStorage
		look func(context.Context, Storage) error
	}{
		{"check", dev, func(ctx context.Context, dev Storage) error {
			_, err := Check(ctx, dev, CheckOptions{})
			return err
		}},
		{"check without superblocks", lost, func(ctx context.Context, dev Storage) error {
			_, err := Check(ctx, dev, CheckOptions{Scan: true})
			return err
		}},
		{"salvage", dev, func(ctx context.Context, dev Storage) error {
			s, err := OpenSalvage(ctx, dev, nil, nil)
			if err == nil {
				s.Close()
			}
			return err
		}},
		{"dump", dev, func(ctx context.Context, dev Storage) error {
			d, err := Dump(ctx, dev, DumpOptions{Journal: true, Summaries: true, Blocks: true})
			if err == nil {
				d.Close()
			}
			return err
		}},
		{"dump without blocks", dev, func(ctx context.Context, dev Storage) error {
			_, err := Dump(ctx, dev, DumpOptions{Journal: true})
			return err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			held := offHeapHeld.Load()
			all := &countedReads{memStorage: tt.dev, f: func(int) {}}
			if err := tt.look(t.Context(), all); err != nil {
				t.Fatal(err)
			}
			if n := offHeapHeld.Load() - held; n != 0 {
				t.Errorf("%d bytes are left of it all", n)
			}
			if all.n < 10 {
				t.Fatalf("only %d reads", all.n)
			}
			for at := 1; at <= all.n; at += max(1, all.n/64) {
				ctx, cancel := context.WithCancel(t.Context())
				s := &countedReads{memStorage: tt.dev, f: func(n int) {
					if n == at {
						cancel()
					}
				}}
				if err := tt.look(ctx, s); !errors.Is(err, context.Canceled) {
					t.Fatalf("interrupted in read %d of %d: %v", at, all.n, err)
				}
				cancel()
				// Superblocks, and both copies of summaries, are read one after the other.
				if s.n > at+3 {
					t.Errorf("interrupted in read %d of %d it goes on until read %d", at, all.n, s.n)
				}
				if n := offHeapHeld.Load() - held; n != 0 {
					t.Fatalf("interrupted in read %d of %d it leaves %d bytes", at, all.n, n)
				}
			}
		})
	}
}

// The metadata alone has a progress, too, and whoever is interrupted between two steps does not make another.
func TestCheckProgress(t *testing.T) {
	dev := stoppedCache(t)
	var shares []float64
	note := func(s float64) { shares = append(shares, s) }
	if _, err := Check(t.Context(), dev, CheckOptions{Data: true, Progress: note}); err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(shares) || shares[0] <= 0 || shares[len(shares)-1] > 1 {
		t.Errorf("with data: %v", shares)
	}
	shares = nil
	if _, err := Check(t.Context(), dev, CheckOptions{Progress: note}); err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(shares) || len(shares) < 8 || shares[len(shares)-1] != 1 {
		t.Fatalf("without data: %v", shares)
	}
	for _, at := range shares[:len(shares)-1] {
		ctx, cancel := context.WithCancel(t.Context())
		after := 0
		_, err := Check(ctx, dev, CheckOptions{Progress: func(s float64) {
			if ctx.Err() != nil {
				after++
			}
			if s >= at {
				cancel()
			}
		}})
		if cancel(); !errors.Is(err, context.Canceled) || after > 0 {
			t.Errorf("interrupted at %v: %v, %d steps more", at, err, after)
		}
	}
}

// A device of many buckets is searched for the next blocks until ctx ends.
func TestInterruptedSearch(t *testing.T) {
	c, _, err := inspect(t.Context(), stoppedCache(t), nil, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.release()
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	_, err = c.nextKeys(ctx, nil, 0, 1000, func(key, state) bool {
		asked++
		cancel()
		return true
	})
	if !errors.Is(err, context.Canceled) || asked == 0 || asked > int(c.geo.slotsPerBucket()) {
		t.Errorf("%v after %d blocks", err, asked)
	}
}
