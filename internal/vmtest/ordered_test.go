//go:build vm

package vmtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	orderedAge = 6 * time.Second
	// orderedSlack is what suspending the disk and looking at it may add to an age.
	orderedSlack = 4 * time.Second
	orderedMiB   = 384
	// orderedMore is how many images more are taken at most until one of them is behind.
	orderedMore = 10
)

// TestOrdered has a filesystem on an ordered device under load, and takes the disk without the SSD, again and
// again: the filesystem on it must be whole after the replay of its journal, what was written with
// fsync must be there in order and without a gap, and all of it that is older than ordered-age. In
// the end the daemon is killed and the disk taken for good.
func TestOrdered(t *testing.T) {
	for _, fs := range fileSystems[:2] {
		t.Run(fs.name, func(t *testing.T) {
			if OnlyFull(t); fs.name != "ext4" {
				OnlyLong(t)
			}
			Limit(t, 8*time.Minute)
			fs.ordered(t)
		})
	}
}

func (fs FS) ordered(t *testing.T) {
	y := Fault(t, "ordered device: its disk alone, under load, "+fs.name)
	forGood := Fault(t, "ordered device: SSD lost for good, "+fs.name)
	c := NewCache(t, Slice(t, "ssd", 0, 160))
	disk := Slice(t, "slow", 0, orderedMiB)
	dev := c.Attach(t, disk, "data", "--mode=writeback", "--ordered=on",
		"--ordered-age="+orderedAge.String(), "--ordered-max=64M")
	fs.Create(t, dev)
	Ubcache(t, "flush", "data")
	Wait(t, time.Minute, "the order", func() bool { return c.Device(t, "data").Ordered == "on" })
	dir := t.TempDir()
	Run(t, "mount", dev, dir)
	w := startOrderedWriter(dir)
	stop := sync.OnceFunc(func() {
		w.stop()
		Run(t, "umount", dir)
	})
	t.Cleanup(func() {
		if !t.Failed() {
			stop()
		}
	})
	rnd := rand.New(rand.NewPCG(uint64(len(fs.name)), 7))
	taken, behind, most, oldest := 0, 0, int64(0), int64(0)
	images := 2
	if Long(t) {
		images = 6
	}
	// A slow machine may just have written everything back; then there are some more.
	for ; taken < images || behind == 0 && !t.Failed() && taken < images+orderedMore; taken++ {
		before := w.done.Load()
		Wait(t, time.Minute, "more files", func() bool { return w.done.Load() > before+20 || w.err() != nil })
		// What was written before the disk was suspended for the last image was late.
		time.Sleep(orderedAge + time.Duration(rnd.IntN(3000))*time.Millisecond)
		d := c.Device(t, "data")
		if d.Ordered != "on" {
			t.Fatalf("the order is %q", d.Ordered)
		}
		most, oldest = max(most, d.UnsettledBytes), max(oldest, d.UnsettledMs)
		t.Run(fmt.Sprint("image", taken), func(t *testing.T) {
			Run(t, "dmsetup", "suspend", "--noflush", "--nolockfs", filepath.Base(disk))
			defer Run(t, "dmsetup", "resume", filepath.Base(disk))
			behind += fs.checkImage(t, y, w)
		})
		if err := w.err(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(orderedAge)
	batches := c.Stats(t).Devices["data"].SettledBatches
	t.Run("killed", func(t *testing.T) {
		c.Kill(t)
		behind += fs.checkImage(t, forGood, w)
	})
	c.Start(t) // the writer goes on
	stop()
	if err := w.err(); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%s: %d images whole, together %d files behind the %d written; at most %d KiB to be lost, of %d ms; %d batches\n",
		t.Name(), taken+1, behind, w.done.Load(), most>>10, oldest, batches)
	if oldest > orderedAge.Milliseconds() {
		t.Errorf("data was %d ms old", oldest)
	}
	if behind == 0 {
		t.Error("no image was behind, so the order was not tried")
	}
	Ubcache(t, "flush", "data")
	fs.Verify(t, disk)
}

// checkImage looks at the filesystem that is on the disk alone, and returns how many files it lacks.
func (fs FS) checkImage(t *testing.T, y *Tally, w *orderedWriter) (behind int) {
	y.Tried(1)
	now, done := time.Now(), w.done.Load()
	snap := Snapshot(t, RawSlice(t, "slow", 0, orderedMiB))
	options := "defaults"
	if fs.name == "xfs" {
		options = "nouuid"
	}
	dir := t.TempDir()
	Run(t, "mount", "-o", options, snap, dir)
	n, err := w.check(dir, now)
	Run(t, "umount", dir)
	switch {
	case errors.Is(err, errNotItsOwn):
		y.Wrong("%v", err)
	case errors.Is(err, errLacks):
		y.Lost("%v", err)
	case err != nil:
		y.Failed("%v", err)
	}
	fs.Verify(t, snap)
	return int(done) - n
}

// orderedWriter writes a counter in place, with fsync, then a file of that number, with fsync. Beside
// it others make and remove files.
type orderedWriter struct {
	dir   string
	done  atomic.Int64 // files that are synced
	over  atomic.Bool
	fault atomic.Pointer[error]
	wg    sync.WaitGroup
	mu    sync.Mutex
	times []time.Time // when they were
}

func startOrderedWriter(dir string) *orderedWriter {
	w := &orderedWriter{dir: dir}
	w.wg.Go(func() {
		err := os.Mkdir(filepath.Join(dir, "files"), 0o755)
		for i := 0; err == nil && !w.over.Load(); i++ {
			if err = w.one(i); err == nil {
				w.mu.Lock()
				w.times = append(w.times, time.Now())
				w.mu.Unlock()
				w.done.Store(int64(i) + 1)
			}
		}
		w.fail(err)
	})
	w.wg.Go(func() {
		var err error
		for i := 0; err == nil && !w.over.Load(); i++ {
			err = w.churn(i)
		}
		w.fail(err)
	})
	return w
}

func (w *orderedWriter) fail(err error) {
	if err != nil {
		w.fault.CompareAndSwap(nil, &err)
	}
}

func (w *orderedWriter) err() error {
	if p := w.fault.Load(); p != nil {
		return *p
	}
	return nil
}

func (w *orderedWriter) stop() {
	w.over.Store(true)
	w.wg.Wait()
}

func orderedName(dir string, i int) string {
	return filepath.Join(dir, "files", fmt.Sprintf("%06d", i))
}

// orderedData is the content of file i.
func orderedData(i int) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "%015d\n", i), 1+i*7919%3000)
}

func (w *orderedWriter) one(i int) error {
	var n [4096]byte
	binary.LittleEndian.PutUint64(n[:], uint64(i))
	if err := writeSynced(filepath.Join(w.dir, "counter"), os.O_CREATE|os.O_RDWR, n[:]); err != nil {
		return err
	}
	if err := writeSynced(orderedName(w.dir, i), os.O_CREATE|os.O_EXCL|os.O_RDWR, orderedData(i)); err != nil {
		return err
	}
	d, err := os.Open(filepath.Join(w.dir, "files"))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func writeSynced(name string, flags int, data []byte) error {
	f, err := os.OpenFile(name, flags, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	return errors.Join(err, f.Sync(), f.Close())
}

// churn makes and removes files without fsync.
func (w *orderedWriter) churn(i int) error {
	dir := filepath.Join(w.dir, fmt.Sprint("churn", i%5))
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for j := range 40 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(j)), orderedData(i*40+j), 0o644); err != nil {
			return err
		}
	}
	time.Sleep(100 * time.Millisecond)
	return os.Rename(filepath.Join(dir, "7"), filepath.Join(dir, "renamed"))
}

// What [orderedWriter.check] finds.
var (
	errNotItsOwn = errors.New("not its own")
	errLacks     = errors.New("the image lacks something")
)

// check compares an image taken at a time with what had been written by then: it has the files up
// to some number, all that are old enough, and the counter fits.
func (w *orderedWriter) check(dir string, at time.Time) (n int, err error) {
	for ; ; n++ {
		got, err := os.ReadFile(orderedName(dir, n))
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			return n, err
		}
		if want := orderedData(n); !bytes.Equal(got, want) {
			// The one that was being written need not be whole, but then nothing comes after it.
			if _, err := os.Stat(orderedName(dir, n+1)); err == nil {
				return n, fmt.Errorf("file %d has %d bytes that are %w, and file %d is there", n, len(got), errNotItsOwn, n+1)
			}
			break
		}
	}
	all, err := filepath.Glob(filepath.Join(dir, "files", "*"))
	if err != nil {
		return n, err
	}
	if len(all) > n+1 {
		return n, fmt.Errorf("%w: files up to %d are there, and %d in all, the last of them %s", errLacks, n, len(all),
			strings.Join(all[len(all)-3:], " "))
	}
	if n > 0 {
		p, err := os.ReadFile(filepath.Join(dir, "counter"))
		if err != nil {
			return n, err
		}
		if len(p) < 8 {
			return n, fmt.Errorf("%w: the counter has %d bytes", errLacks, len(p))
		}
		// It was written before file n-1, and before file n.
		if v := int(binary.LittleEndian.Uint64(p)); v != n && v != n-1 {
			return n, fmt.Errorf("%w: files up to %d are there, but the counter says %d", errLacks, n, v)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := n; i < len(w.times); i++ {
		if old := at.Sub(w.times[i]); old > orderedAge+orderedSlack {
			return n, fmt.Errorf("%w: file %d was synced %v ago and is not there", errLacks, i, old)
		}
	}
	return n, nil
}
