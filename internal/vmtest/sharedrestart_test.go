//go:build vm

package vmtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ubcache/attrs"
	"ubcache/attrs/client"
)

// sharedLoad writes and reads with attributes through shared memory all the time, several requests at a
// time, and looks at data and answers.
type sharedLoad struct {
	submit bool // see startSharedLoadBy
	d      *client.Device
	wg     sync.WaitGroup
	over   atomic.Bool                 // stopped
	done   [sharedWorkers]atomic.Int64 // writes that were read back
	fault  atomic.Pointer[error]
	// lenient allows hints that nobody has handled, and counts them.
	lenient atomic.Bool
	silent  atomic.Int64
	busy    atomic.Int64 // writes that the cache had no room for
}

const (
	sharedWorkers = 4
	sharedBytes   = 64 << 10
	sharedPlaces  = 8
	// One worker has requests that the kernel splits.
	sharedLarge       = 3 << 20
	sharedLargePlaces = 3
)

func startSharedLoad(t testing.TB, path string) *sharedLoad {
	t.Helper()
	return startSharedLoadBy(t, path, false)
}

// startSharedLoadBy is startSharedLoad of which every other worker submits by io_uring. A request of these is not done
// again when the memory was lost and it has failed for that.
func startSharedLoadBy(t testing.TB, path string, submit bool) *sharedLoad {
	t.Helper()
	d, err := client.Open(path, client.Options{Channel: client.Shared})
	if err != nil {
		t.Fatal(err)
	}
	l := &sharedLoad{d: d, submit: submit}
	for w := range sharedWorkers {
		l.wg.Go(func() {
			if err := l.work(w); err != nil {
				err = fmt.Errorf("%s, worker %d: %w", path, w, err)
				l.fault.CompareAndSwap(nil, &err)
			}
		})
	}
	t.Cleanup(func() { l.stop(t) }) // before the cache, whose end waits for who has the device open
	return l
}

func (l *sharedLoad) work(w int) error {
	size, base, places := int64(sharedBytes), int64(w*sharedPlaces*sharedBytes), sharedPlaces
	if w == sharedWorkers-1 {
		size, places = sharedLarge, sharedLargePlaces
	}
	buf, err := l.d.Alloc(int(size))
	if err != nil {
		return err
	}
	var write, read attrs.Set
	write.SetHint(attrs.HintCache)
	write.SetTrace(uint64(w))
	read.SetHint(attrs.HintOnce)
	writeAt, readAt := l.d.WriteAt, l.d.ReadAt
	if l.submit && w%2 == 1 {
		writeAt, readAt = l.submitted(client.Write), l.submitted(client.Read)
	}
	for i := 0; !l.over.Load(); i++ {
		off := base + int64(i%places)*size
		Fill(buf, uint64(i))
		want := bytes.Clone(buf)
		if err := l.handled(writeAt(buf, off, &write)); err != nil {
			return fmt.Errorf("write at %d: %w", off, err)
		}
		clear(buf)
		if err := l.handled(readAt(buf, off, &read)); err != nil {
			return fmt.Errorf("read at %d: %w", off, err)
		}
		if !bytes.Equal(buf, want) {
			return fmt.Errorf("read at %d: other data than was written", off)
		}
		l.done[w].Add(1)
	}
	return nil
}

// submitted is ReadAt or WriteAt by Submit.
func (l *sharedLoad) submitted(k client.Kind) func([]byte, int64, *attrs.Set) (int, attrs.Results, error) {
	var op client.Op
	return func(p []byte, off int64, s *attrs.Set) (int, attrs.Results, error) {
		op.Kind, op.Buf, op.Off, op.Attrs = k, p, off, s
		if err := l.d.Submit(&op); err != nil {
			return 0, attrs.Results{}, err
		}
		err := op.Wait()
		return op.N, op.Results, err
	}
}

// handled wants a request to have succeeded, with its hint handled; or answered by a cache that is short of
// buckets, as it may be on a slow machine.
func (l *sharedLoad) handled(_ int, r attrs.Results, err error) error {
	h := r.For(attrs.IDHint)
	if err != nil || h.Status == attrs.Handled {
		return err
	}
	if h.Status == attrs.Ignored && h.Reason == attrs.ReasonBusy {
		l.busy.Add(1)
		return nil
	}
	l.silent.Add(1)
	if h.Status == attrs.NotHandled && l.lenient.Load() {
		return nil
	}
	return fmt.Errorf("the hint is %v", h)
}

func (l *sharedLoad) err() error {
	if e := l.fault.Load(); e != nil {
		return *e
	}
	return nil
}

// goesOn waits until each worker has done something from beginning to end.
func (l *sharedLoad) goesOn(t testing.TB) {
	t.Helper()
	var from [sharedWorkers]int64
	for w := range from {
		from[w] = l.done[w].Load()
	}
	Wait(t, time.Minute, "requests through shared memory", func() bool {
		for w := range from {
			if l.done[w].Load() < from[w]+2 {
				return l.err() != nil
			}
		}
		return true
	})
	if err := l.err(); err != nil {
		t.Fatal(err)
	}
}

func (l *sharedLoad) stop(t testing.TB) {
	t.Helper()
	if l.over.Swap(true) {
		return
	}
	l.wg.Wait()
	total := int64(0)
	for w := range l.done {
		total += l.done[w].Load()
	}
	fmt.Printf("%d writes and reads, %d writes past a cache without room\n", total, l.busy.Load())
	if err := errors.Join(l.err(), l.d.Close()); err != nil {
		t.Error(err)
	}
}

// registered is the indices on record of the memory that is registered with the cache's devices.
func registered(t testing.TB) (list []int) {
	t.Helper()
	files, err := filepath.Glob(runtimeDir + "/*.shared")
	if err != nil || len(files) == 0 {
		t.Fatalf("no record of registered memory: %v", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var r struct {
			Buffers []struct{ Index int }
			Stale   []int
		}
		if err := json.Unmarshal(text, &r); err != nil {
			t.Fatal(err)
		}
		for _, b := range r.Buffers {
			list = append(list, b.Index)
		}
		list = append(list, r.Stale...)
	}
	return list
}

// sharesMemory waits until so many clients' memory is registered with a device.
func (c *Cache) sharesMemory(t testing.TB, name string, want int) {
	t.Helper()
	Wait(t, 30*time.Second, fmt.Sprintf("%d clients' memory registered with %s", want, name),
		func() bool { return c.Device(t, name).SharedMemory == want })
}

// TestSharedLost: the next daemon does not find the clients' memory, as the record is lost. No request
// fails all the same, and after some time attributes are handled again.
func TestSharedLost(t *testing.T) {
	OnlyLong(t)
	NeedKernel(t, "7.1")
	for _, mode := range []string{"ring-copy", "zero-copy", "copy"} {
		t.Run(mode, func(t *testing.T) { sharedLost(t, mode) })
	}
}

func sharedLost(t *testing.T, mode string) {
	Limit(t, 3*time.Minute)
	var format []string
	if mode == "zero-copy" {
		format = append(format, "--no-checksums")
	}
	c := NewCache(t, Slice(t, "ssd", 0, 128), format...)
	if mode == "copy" {
		c.Stop(t)
		Sh(t, `sed -i '/^\[cache.main\]/a copy = "copy"' `+configPath)
		c.Start(t)
	}
	dev := c.Attach(t, Slice(t, "slow", 0, 128), "data", writeback...)
	if got := c.Device(t, "data").CopyMode; got != mode {
		t.Fatalf("copy mode %s, want %s", got, mode)
	}
	l := startSharedLoad(t, dev)
	for range 2 {
		l.goesOn(t)
		l.lenient.Store(true)
		c.Kill(t)
		Sh(t, "rm "+runtimeDir+"/*.shared")
		c.Start(t)
		c.sharesMemory(t, "data", 1)
		l.goesOn(t)
		l.lenient.Store(false)
		l.goesOn(t)
	}
	fmt.Printf("%s: %d requests without an answer while the memory was lost\n", mode, l.silent.Load())
	l.stop(t)
	c.nothingShared(t, "data")
}

// nothingShared wants no memory to be registered with a device, as the daemon and the kernel see it: the
// kernel gives out the lowest index that is free.
func (c *Cache) nothingShared(t testing.TB, name string) {
	t.Helper()
	c.sharesMemory(t, name, 0)
	dev := c.Device(t, name).Path
	if m := merges(t, dev); m == "2" {
		t.Errorf("nomerges of %s is still %s", dev, m)
	}
	if list := registered(t); len(list) != 0 {
		t.Errorf("indices %v on record", list)
	}
	d, err := client.Open(dev, client.Options{Channel: client.Shared})
	if err != nil {
		t.Fatal(err)
	}
	if list := registered(t); len(list) != 1 || list[0] != 0 {
		t.Errorf("indices %v, want 0 alone", list)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	c.sharesMemory(t, name, 0)
}

func merges(t testing.TB, dev string) string {
	t.Helper()
	text, err := os.ReadFile(QueueFile(t, dev, "nomerges"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// TestSharedRestart: clients with their memory registered go on through deaths of the daemon, and through
// an upgrade, on the block device, on a partition of another and on a file. No request fails, the data
// is right and each hint is handled; in the end nothing is left registered.
func TestSharedRestart(t *testing.T) {
	NeedKernel(t, "7.1")
	for _, format := range [][]string{{"--no-checksums"}, nil} {
		name := strings.Join(append([]string{"copy"}, format...), " ")
		t.Run(name, func(t *testing.T) { sharedRestart(t, format) })
	}
}

func sharedRestart(t *testing.T, format []string) {
	Limit(t, 6*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 256), format...)
	raw := c.Attach(t, Slice(t, "slow", 0, 128), "data", writeback...)
	parted := c.Attach(t, Slice(t, "slow", 256, 320), "parts", writeback...)
	Sh(t, "printf 'label: gpt\nsize=100M\nsize=200M\n' | sfdisk -q "+parted)
	waitForDevice(t, parted+"p2")
	Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", parted+"p2")
	loads := []*sharedLoad{
		startSharedLoadBy(t, raw, true), startSharedLoadBy(t, parted+"p1", true),
		startSharedLoadBy(t, fileOn(t, parted+"p2", ""), true),
	}
	c.sharesMemory(t, "data", 3)
	c.sharesMemory(t, "parts", 2)
	if m := merges(t, raw); m != "2" {
		t.Errorf("nomerges %s while memory is registered", m)
	}
	for i := range 6 {
		for _, l := range loads {
			l.goesOn(t)
		}
		if i == 3 {
			c.terminate(t)
		} else {
			c.Kill(t)
		}
		c.Start(t)
		if i == 1 {
			c.Kill(t) // before any client can have come back
			c.Start(t)
		}
	}
	for _, l := range loads {
		l.goesOn(t)
	}
	if n := c.Attributes(t).ByAttribute["hint"].Handled; n == 0 {
		t.Error("the last daemon has handled no hint")
	}
	// The connections are made anew, so that each client's end is noticed.
	for _, l := range loads {
		if _, err := l.d.Query(); err != nil {
			t.Logf("not connected yet: %v", err)
		}
		if ch, why := l.d.Channel(); ch != client.Shared {
			t.Errorf("channel %v (%s)", ch, why)
		}
		Wait(t, 30*time.Second, "a query", func() bool {
			list, err := l.d.Query()
			return err == nil && len(list) > 0
		})
		l.stop(t)
	}
	c.sharesMemory(t, "parts", 0)
	c.nothingShared(t, "data")
}
