package daemon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	api "ubcache/attrs/client"
	"ubcache/internal/blockdev"
	"ubcache/internal/control"
	"ubcache/internal/missed"
)

// logged collects what the daemon logs.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), s)
}

// watched is a cache that has lost its SSD, and what would look for it.
type watched struct {
	*directBench
	ssdWatch
	log   logged
	anews []int // what Options.Anew was called with
}

func newWatched(t *testing.T, b *directBench) *watched {
	w := &watched{directBench: b, ssdWatch: ssdWatch{in: b.Instance}}
	b.Instance.log = slog.New(slog.NewTextHandler(&w.log, nil))
	b.opts.Anew = func(times int) error {
		w.anews = append(w.anews, times)
		return nil
	}
	d := b.open(api.Options{})
	must(t, b.writeAt(d, 0, 1, 4096))
	b.flushed(d)
	b.loseSSD(d)
	b.wantAt(d, 0, 1, 4096)
	closeDevice(t, d)
	return w
}

// looks looks for the SSD n times and wants that the daemon has been started anew so often by then.
func (w *watched) looks(n int, anews ...int) {
	w.t.Helper()
	for range n {
		w.look()
	}
	if fmt.Sprint(w.anews) != fmt.Sprint(anews) {
		w.t.Fatalf("after %d looks it was started anew with %v, expected %v", n, w.anews, anews)
	}
}

// loseSSD makes the SSD vanish, of which d has a block at 0, and waits until that is known.
func (b *directBench) loseSSD(d *api.Device) {
	b.t.Helper()
	b.ssdGone()
	buf, err := d.Alloc(4096)
	must(b.t, err)
	_, _, _ = d.ReadAt(buf, 0, nil)
	b.wait("the loss", func() bool { _, lost := b.cache.Loss(); return lost })
}

// files lists what is in a folder, with a hash of what each file begins with.
func files(t testing.TB, dir string) string {
	t.Helper()
	var list strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			fmt.Fprintln(&list, path)
			return err
		}
		fmt.Fprintln(&list, path, head(t, path))
		return nil
	}))
	return list.String()
}

// head is a hash of what a file begins with: of an SSD, its superblocks and its journal.
func head(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyN(h, f, 4<<20); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// copyImage copies a file, but not the holes in it.
func copyImage(t testing.TB, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v: %s", from, err, out)
	}
}

// TestUnwritableSSDIsNotTakenBack: an SSD that can be read and not written is left alone, which is said once. It is
// taken back when it can be written, and after each loss that follows at once it is looked at twice as long.
func TestUnwritableSSDIsNotTakenBack(t *testing.T) {
	w := newWatched(t, newDirectBench(t, directOptions{mode: "writethrough"}))
	tries := 0
	w.directBench.opts.rewrite = func(i *blockdev.Info, off int64) error {
		if tries++; i.Content.UUID != w.conf.UUID || off+4096 > 64<<10 {
			t.Errorf("it is tried at %d of %+v", off, i)
		}
		return unix.EROFS
	}
	for range 40 * ssdLookTimes {
		w.look()
	}
	if n := w.log.count("it cannot be written"); len(w.anews) != 0 || n != 1 || tries != 40 {
		t.Fatalf("started anew with %v, tried to write %d times, and %d lines say that it cannot be written:\n%s",
			w.anews, tries, n, &w.log.text)
	}
	w.directBench.opts.rewrite = (*blockdev.Info).Rewrite
	w.seen = 0
	w.looks(ssdLookTimes - 1)
	w.looks(1, 1) // once more, soon after the start
	w.Instance.anew, w.anews = 2, nil
	w.looks(4*ssdLookTimes - 1)
	w.looks(1, 3)
	w.started = w.started.Add(-ssdSoon)
	w.looks(4*ssdLookTimes, 3, 0) // it has been of use for long
}

// TestAnewFails: a daemon that cannot execute itself tries that less and less often.
func TestAnewFails(t *testing.T) {
	w := newWatched(t, newDirectBench(t, directOptions{mode: "writethrough"}))
	n := 0
	w.directBench.opts.Anew = func(int) error { n++; return errors.New("no") }
	for range ssdLookTimes * (1 + 2 + 4 + 8) {
		w.look()
	}
	if n != 4 || w.log.count("restart the daemon") != 4 {
		t.Errorf("%d tries:\n%s", n, &w.log.text)
	}
}

// TestOlderCopyIsNotTakenBack: what comes back as the SSD must not be a copy from an earlier start.
func TestOlderCopyIsNotTakenBack(t *testing.T) {
	b := newDirectBench(t, directOptions{mode: "writethrough"})
	ssd := filepath.Join(b.dir, "ssd")
	must(t, b.Stop(context.Background(), true))
	copyImage(t, ssd, ssd+".old")
	b.again()
	w := newWatched(t, b)
	must(t, os.Rename(ssd, ssd+".new"))
	must(t, os.Rename(ssd+".old", ssd))
	w.looks(10 * ssdLookTimes)
	if n := w.log.count("it is a copy from before"); n != 1 {
		t.Errorf("%d lines say that it is an older copy:\n%s", n, &w.log.text)
	}
	must(t, os.Rename(ssd+".new", ssd))
	w.looks(ssdLookTimes, 1)
}

// ends are the ways in which a daemon without its SSD ends and leaves the cache to the next one.
var ends = map[string]func(b *directBench) error{
	"stop": func(b *directBench) error { return b.Stop(context.Background(), true) },
	// What SIGTERM does to devices that are in use.
	"hand over": func(b *directBench) error { return b.HandOver(context.Background()) },
	// What an execution of the program does: nothing.
	"anew": func(b *directBench) error { b.crash(); return nil },
}

// TestEndWithoutSSD: a daemon that ends while its SSD is lost leaves all that the next start needs: the SSD as it
// was, the pending ring with what the journal lacks, and the copy of the superblock, which must not say that
// nothing is dirty. An older copy of the SSD in its place changes nothing of that.
func TestEndWithoutSSD(t *testing.T) {
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			b := newDirectBench(t, directOptions{})
			ssd := filepath.Join(b.dir, "ssd")
			must(t, b.Stop(context.Background(), true))
			copyImage(t, ssd, ssd+".old")
			b.again()
			for _, disk := range []string{"disk0", "disk1"} {
				_, err := b.set(context.Background(), control.SetArgs{Name: disk, Settings: map[string]string{
					"writeback-delay": "1h", "ssd-loss-hold": "0s",
				}}, nil)
				must(t, err)
			}
			d := b.open(api.Options{})
			must(t, b.writeAt(d, 0, 1, 8192))
			b.flushed(d)
			must(t, b.bg.do(func() error { // nothing is committed meanwhile
				defer b.spoilSSD(b.bg)
				return b.writeAt(d, 64<<10, 2, 8192)
			}))
			b.loseSSD(d)
			closeDevice(t, d)
			id := b.Status().Cache.UUID
			copied, err := missed.ReadSuper(b.stateDir, id)
			must(t, err)
			ring := pendingPath(b.Instance.dir, copied.UUID)
			before := files(t, b.stateDir)
			copyImage(t, ssd, ssd+".now")
			must(t, exec.Command("cp", ssd+".old", ssd).Run()) // in place: the daemon has it open

			must(t, end(b))
			p, err := os.ReadFile(ring)
			must(t, err)
			le := binary.LittleEndian
			if n := le.Uint64(p[48:]) - le.Uint64(p[40:]); n != 2 || le.Uint64(p[56:]) != 1 {
				t.Errorf("the pending ring has %d records, mark %d", n, le.Uint64(p[56:]))
			}
			if now := files(t, b.stateDir); now != before || head(t, ssd) != head(t, ssd+".old") {
				t.Errorf("the end has written to the SSD, or the state folder has changed from\n%sto\n%s", before, now)
			}
			must(t, exec.Command("cp", ssd+".now", ssd).Run())
			must(t, os.Rename(ssd, ssd+".away"))
			if err := b.startNow(time.Second); err == nil || !strings.Contains(err.Error(), "--without-ssd") {
				t.Errorf("start without the SSD: %v", err)
			}
			must(t, os.Rename(ssd+".away", ssd))
			b.again()
			d = b.open(api.Options{})
			b.wantAt(d, 0, 1, 8192)
			b.wantAt(d, 64<<10, 2, 8192)
			closeDevice(t, d)
			if n := b.Status().Devices[0].DirtyBytes; n != 16<<10 {
				t.Errorf("%d bytes are dirty", n)
			}
		})
	}
}

// TestReturnThatWouldBeRefused: disk1 is served without the SSD, and disk0 is not. The SSD is not taken back as long as a start
// with it would be refused because of disk0, which would leave disk1 without a daemon.
func TestReturnThatWouldBeRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		// change makes the start be refused, and undo puts that right; nil: nothing does while the daemon runs.
		change, undo func(b *oldBench, disk string)
		says         string
	}{
		{"changed without the SSD", func(b *oldBench, _ string) {
			must(b.t, b.Stop(context.Background(), true))
			must(b.t, b.startNow(time.Second, "disk0"))
			b.write(2)
			must(b.t, b.Stop(context.Background(), true))
			must(b.t, b.startNow(time.Second))
		}, nil, "and it has dirty data of them"},
		{"used without the cache", func(b *oldBench, disk string) {
			writeFile(b.t, disk, 8192, 9, 4096)
		}, func(b *oldBench, disk string) {
			writeFile(b.t, disk, 8192, 0, 4096)
		}, "was changed without the cache"},
		{"another device in its place", func(b *oldBench, disk string) {
			must(b.t, os.Truncate(disk, directDiskBytes/2))
		}, func(b *oldBench, disk string) {
			must(b.t, os.Truncate(disk, directDiskBytes))
		}, "is not the backing device"},
		{"in use", func(b *oldBench, disk string) {
			i, err := blockdev.Inspect(disk)
			must(b.t, err)
			d, err := i.Open(context.Background())
			must(b.t, err)
			b.user = d
		}, func(b *oldBench, _ string) {
			must(b.t, b.user.Close())
		}, "in use by"},
		{"configuration damaged", func(b *oldBench, _ string) {
			must(b.t, os.Rename(b.opts.ConfigPath, b.opts.ConfigPath+".good"))
			must(b.t, os.WriteFile(b.opts.ConfigPath, []byte("[cache"), 0o600))
		}, func(b *oldBench, _ string) {
			must(b.t, os.Rename(b.opts.ConfigPath+".good", b.opts.ConfigPath))
		}, "would be refused"},
		{"missing", func(b *oldBench, disk string) { // keeps nothing from starting
			must(b.t, os.Rename(disk, disk+".away"))
		}, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newOldBench(t, "")
			b.write(1) // dirty, of disk0
			b.stop()
			b.hideSSD(true)
			must(t, b.startNow(time.Second))
			disk := filepath.Join(b.dir, "disk0")
			tt.change(b, disk)
			d := b.open(api.Options{Device: "disk1"})
			must(t, b.writeAt(d, 0, 3, 4096))
			b.flushed(d)
			closeDevice(t, d)
			var log logged
			b.Instance.log = slog.New(slog.NewTextHandler(&log, nil))
			anews := 0
			b.opts.Anew = func(int) error { anews++; return nil }
			w := ssdWatch{in: b.Instance}
			look := func() {
				for range 10 * ssdLookTimes {
					w.look()
				}
			}
			b.hideSSD(false)
			look()
			if tt.says != "" {
				if anews != 0 || log.count("the SSD is back, but is not used") != 1 || log.count(tt.says) != 1 {
					t.Fatalf("started anew %d times:\n%s", anews, &log.text)
				}
				if tt.undo == nil {
					return
				}
				tt.undo(b, disk)
				look()
			}
			if anews == 0 {
				t.Fatalf("the SSD is not taken back:\n%s", &log.text)
			}
			b.crash() // which the execution is
			must(t, b.startNow(time.Second))
		})
	}
}
