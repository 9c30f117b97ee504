package client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
)

// openShared opens a file on channel Shared, with which nobody answers.
func openShared(t testing.TB, o Options) *Device {
	t.Helper()
	o.Socket, o.Channel = fake(t, []string{"a"}), Shared
	return open(t, makeFile(t), o)
}

// ringIsThere makes sure that a test tests what it is for.
func ringIsThere(t testing.TB, d *Device) {
	t.Helper()
	if d.async.thread == nil {
		t.Error("the requests were not done by io_uring")
	}
}

// TestSubmitAllocatesNothing: not on any channel, with attributes or without, from the region or not.
func TestSubmitAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("with the race detector sync.Pool forgets things on purpose")
	}
	ring, err := Open("", Options{Device: "data"})
	must(t, err)
	t.Cleanup(func() { must(t, ring.Close()) })
	shared := openShared(t, Options{})
	plain := open(t, makeFile(t), Options{Channel: Plain})
	var set attrs.Set
	set.SetHint(attrs.HintCache)
	for _, c := range []struct {
		name  string
		d     *Device
		alloc func(int) ([]byte, error)
	}{
		{"direct", ring, ring.Alloc},
		{"shared", shared, shared.Alloc},
		{"plain", plain, plain.Alloc},
		{"plain, foreign memory", plain, func(n int) ([]byte, error) { return make([]byte, n), nil }},
	} {
		for _, s := range []*attrs.Set{nil, &set} {
			ops := make([]Op, 16)
			for i := range ops {
				buf, err := c.alloc(4096)
				must(t, err)
				ops[i] = Op{Buf: buf, Off: 256<<10 + int64(i)<<12, Attrs: s}
			}
			n := testing.AllocsPerRun(100, func() {
				for i := range ops {
					must(t, c.d.Submit(&ops[i]))
				}
				for i := range ops {
					must(t, ops[i].Wait())
				}
			})
			if n != 0 {
				t.Errorf("%s, attributes %t: %v allocations", c.name, s != nil, n)
			}
		}
	}
	ringIsThere(t, shared)
	ringIsThere(t, plain)
}

// TestSubmitStartsNothing: with a hundred requests under way there is one goroutine more than without, by
// io_uring, and no more than the workers else. In the end all are gone, and all descriptors.
func TestSubmitStartsNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		with bool
		most int
	}{{"io_uring", true, 1}, {"system calls", false, maxWorkers}} {
		t.Run(c.name, func(t *testing.T) {
			files := descriptors(t)
			before := runtime.NumGoroutine()
			d := openShared(t, Options{})
			if !c.with {
				d.async.start.Do(func() {})
			}
			opened := runtime.NumGoroutine()
			ops := make([]Op, 100)
			for i := range ops {
				buf, err := d.Alloc(64 << 10)
				must(t, err)
				ops[i] = Op{Buf: buf, Off: int64(i%16) << 16, Attrs: bypass()}
			}
			most := 0
			for range 20 {
				for i := range ops {
					must(t, d.Submit(&ops[i]))
					most = max(most, runtime.NumGoroutine()-opened)
				}
				for i := range ops {
					if err := ops[i].Wait(); err != nil || ops[i].N != len(ops[i].Buf) {
						t.Fatalf("request %d: %d bytes, %v", i, ops[i].N, err)
					}
				}
			}
			if most > c.most {
				t.Errorf("%d goroutines for a hundred requests, want %d", most, c.most)
			}
			if (d.async.thread != nil) != c.with {
				t.Errorf("io_uring: %v", d.async.thread != nil)
			}
			must(t, d.Close())
			// The test's own daemon sees the end of the connection later.
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
				// Its listener stays, with one goroutine.
				now, left := runtime.NumGoroutine(), descriptors(t)
				if now <= before+1 && left <= files+1 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%d goroutines and %d descriptors left, before %d and %d", now, left, before, files)
				}
			}
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

// TestSubmitWithoutRing: where there is no io_uring, system calls do the same.
func TestSubmitWithoutRing(t *testing.T) {
	d := openShared(t, Options{})
	d.async.start.Do(func() {})
	exerciseAsync(t, d)
	if d.async.thread != nil || d.async.mu.started == 0 {
		t.Errorf("thread %v, %d workers", d.async.thread, d.async.mu.started)
	}
}

// TestSubmitDepth: more requests than may be under way wait for each other, those by io_uring and those
// by system calls.
func TestSubmitDepth(t *testing.T) {
	path := makeFile(t)
	d := open(t, path, Options{Socket: fake(t, []string{"a"}), Channel: Shared, Depth: 2})
	exerciseAsync(t, d)
	ringIsThere(t, d)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			ops := make([]Op, 30)
			for i := range ops {
				ops[i] = Op{Kind: Flush}
				if i%3 > 0 {
					buf, err := d.Alloc(4096)
					if err != nil {
						t.Error(err)
						return
					}
					clear(buf)
					copy(buf, fmt.Sprintf("request %d of %d", i, g))
					ops[i] = Op{Kind: Write, Buf: buf, Off: int64(g*30+i) << 12, FUA: i%2 == 0}
				}
				if i%10 == 3 {
					ops[i] = Op{Kind: Discard, Off: int64(g*30+i) << 12, Len: 4096}
				}
				if err := d.Submit(&ops[i]); err != nil {
					t.Error(err)
				}
			}
			for i := range ops {
				if err := ops[i].Wait(); err != nil {
					t.Errorf("request %d of %d: %v", i, g, err)
				}
			}
		})
	}
	wg.Wait()
	got, err := os.ReadFile(path)
	must(t, err)
	for i := range 120 {
		want := fmt.Sprintf("request %d of %d\x00", i%30, i/30)
		if i%30%10 == 3 {
			want = "\x00"
		} else if i%30%3 == 0 {
			continue
		}
		if !bytes.HasPrefix(got[i<<12:], []byte(want)) {
			t.Errorf("block %d has %q, want %q", i, got[i<<12:][:20], want)
		}
	}
}

// TestSubmitErrors: each request has its own.
func TestSubmitErrors(t *testing.T) {
	for _, with := range []bool{true, false} {
		d := openShared(t, Options{})
		if !with {
			d.async.start.Do(func() {})
		}
		buf, err := d.Alloc(8192)
		must(t, err)
		for _, c := range []struct {
			name string
			op   *Op
			n    int
			want error
		}{
			{"a negative place", &Op{Buf: buf, Off: -1}, 0, unix.EINVAL},
			{"an unknown kind", &Op{Kind: WriteZeroes + 1}, 0, unix.EINVAL},
			{"a place within a sector", &Op{Buf: buf, Off: 7}, 0, unix.EINVAL},
			{"across the end", &Op{Buf: buf, Off: fileBytes - 4096}, 4096, io.EOF},
			{"after the end", &Op{Buf: buf, Off: 2 * fileBytes}, 0, io.EOF},
			{"the first", &Op{Buf: buf}, 8192, nil},
		} {
			op := c.op
			must(t, d.Submit(op))
			if err := d.Submit(op); err == nil {
				t.Errorf("%s: submitted twice", c.name)
			}
			if err := op.Wait(); !errors.Is(err, c.want) || op.N != c.n {
				t.Errorf("io_uring %t, %s: %d bytes, %v, want %d, %v", with, c.name, op.N, err, c.n, c.want)
			}
		}
	}
}

// BenchmarkSubmit keeps 32 reads of 4 KiB under way through the kernel, from a file without the page
// cache.
func BenchmarkSubmit(b *testing.B) {
	d := open(b, makeFile(b), Options{Socket: fake(b, []string{"a"}), Channel: Shared})
	for _, set := range []*attrs.Set{nil, bypass()} {
		name := "plain"
		if set != nil {
			name = "attributes"
		}
		b.Run(name, func(b *testing.B) {
			ops := make([]Op, 32)
			for i := range ops {
				buf, err := d.Alloc(4096)
				must(b, err)
				defer d.Free(buf)
				ops[i] = Op{Buf: buf, Off: int64(i) << 12, Attrs: set}
				must(b, d.Submit(&ops[i]))
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i = (i + 1) % len(ops) {
				must(b, ops[i].Wait())
				must(b, d.Submit(&ops[i]))
			}
			for i := range ops {
				must(b, ops[i].Wait())
			}
		})
	}
}

// BenchmarkSubmitOne has one under way, so that the time is that of one request.
func BenchmarkSubmitOne(b *testing.B) {
	d := open(b, makeFile(b), Options{Socket: fake(b, []string{"a"}), Channel: Shared})
	buf, err := d.Alloc(4096)
	must(b, err)
	op := &Op{Buf: buf}
	b.ReportAllocs()
	for b.Loop() {
		must(b, d.Submit(op))
		must(b, op.Wait())
	}
}
